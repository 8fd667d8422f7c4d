// The kinds of term for one instruction set, and its table of kernels. Included last by the file of the set, behind the
// policy P of which the kinds are made.

#define QD_TERM_KERNELS
#define QD_TERM(number, constant, Type)
#include "../terms.def"
#undef QD_TERM_KERNELS

template <class P>
constexpr Kernels make_kernels(const char* name) {
  Kernels k = {};
  k.name = name;
#define QD_TERM(number, constant, Type) k.kinds[format::constant] = Type::kernels<P>();
#include "../terms.def"
  k.quantize = quantize, k.make_tables = make_tables, k.gather = gather;
  k.rms_norm = rms_norm, k.layer_norm = layer_norm, k.add = add, k.multiply = multiply, k.activate = activate;
  k.gate = gate, k.scale_rows = scale_rows, k.add_numbers = add_numbers, k.softmax = softmax, k.l2_norm = l2_norm, k.rotate = rotate;
  k.store_f16 = store_f16, k.store_int8 = store_int8;
  k.scores_f16 = scores_f16, k.scores_int8 = scores_int8, k.scores_f32 = scores_f32;
  k.mix_f16 = mix_f16, k.mix_int8 = mix_int8, k.mix_f32 = mix_f32;
  return k;
}
