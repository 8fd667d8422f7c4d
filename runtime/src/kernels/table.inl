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
  using Products = TileProducts<P>;
  k.product_f32 = Products::template product<float>, k.product_f16 = Products::template product<uint16_t>;
  k.product_int8 = Products::template product<int8_t>, k.product_int16 = Products::template product<int16_t>;
  k.widen_f16 = widen_f16, k.widen_int8 = widen_int8, k.round_int16 = round_int16;
  k.scale_scores = scale_scores, k.float_scores = float_scores, k.tile_shares = tile_shares;
  k.join_shares = join_shares, k.add_ints = add_ints;
  return k;
}
