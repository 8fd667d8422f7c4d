// The model file, as its bytes lie. The writer (backends/native/layout.py) says the same in Python; a test holds the two
// together. Little-endian; every struct below is what is on disk, without padding of the compiler's own.
//
//   [Header 512 bytes]
//   [front]     the sections of the header's table, in any order, each 64-byte aligned: matrices, terms, blocks, rungs,
//               tensors, values, nodes, states, attributes, metadata, page checksums. Covered by header.front_crc.
//   [resident]  page-aligned; the small tensors that are always there (norms, biases, rope frequencies, codebooks,
//               column maps), each 64-byte aligned
//   [stack]     page-aligned; the weights, block after block in the order of the rungs, each 64-byte aligned
//
// A page is 65536 bytes. The section `pages` holds the CRC-32C of every page from resident_at to the end of the file (the
// last page is cut), so that a prefix can be verified while it loads.
//
// A rung is a number of blocks: rung r means that blocks 0 .. r-1 of the stack are resident. Rung `floor_rung` is the
// least that may run. A block belongs to one plane of one term; plane 0 holds the term's params too.
//
// A matrix W [rows, columns] is the sum of its terms, then times a scale per row. Rows are padded to a multiple of 16,
// columns through a map to `padded_columns`, a multiple of 32: x'[j] = map[j] < 0 ? 0 : x[map[j]]. Without a map the first
// `columns` are in order and the rest is zero. Groups always cover whole multiples of 16 of the padded columns.
//
// Everything is interleaved by 16 rows (a row block). How the codes of a kind of term lie says its file in terms/, whose
// rows are in terms.def; the unit of codes is mostly 64 bytes.
//
// Integer kinds mean ((code - zero) * scale) + offset, table kinds (table[select][code] * scale), kFloats value * scale,
// where scale, zero, offset and select lie as [row block][groups][16], group g covering columns [g * group, (g + 1) *
// group). A group is a multiple of 16; activations are rounded in groups of gcd(group, 128). A scale may have two levels:
// sub [row block][groups][16] * super [row block][ceil(groups / super_span)][16].
//
// A file names the features that it needs as bits of the header (features.def). A reader that does not know one refuses
// the file; what a later version adds to the format, it adds this way.
#pragma once
#include <cstdint>

namespace qd::format {

constexpr char kMagic[8] = {'q', 'd', 'e', 'p', 'l', 'o', 'y', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kPage = 65536;
constexpr uint32_t kRows = 16;
constexpr uint32_t kTile = 512;
constexpr uint32_t kMaxPlanes = 8;
constexpr uint32_t kMaxRank = 64;  // of kBitstack
constexpr uint32_t kNone = 0xffffffffu;

struct Section {
  uint64_t at;     // from the start of the file
  uint64_t count;  // records (bytes for metadata)
};

enum SectionId : uint32_t {
  kMatrices, kTerms, kBlocks, kRungs, kTensors, kValues, kNodes, kStates, kAttributes, kMetadata, kPages, kSections
};

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t front_crc;  // CRC-32C of [512, front_end)
  uint64_t front_end;
  uint64_t resident_at, resident_bytes;
  uint64_t stack_at, stack_bytes;
  uint64_t file_bytes;
  uint32_t floor_rung;
  uint32_t kind;       // GraphKind
  uint32_t vocab, context;
  uint32_t slot_width; // floats per token of the activations' arena
  uint32_t logits_value;
  uint64_t parameters;
  uint8_t content_sha256[32];  // of the front, which holds the checksums of all that follows
  Section sections[kSections];
  uint64_t features;  // bits of features.def that a reader must know; their names stand in the metadata, too
  uint8_t reserved[192];
  uint32_t reserved2;
  uint32_t header_crc;  // CRC-32C of the 508 bytes before
};
static_assert(sizeof(Header) == 512, "the header is 512 bytes");

enum GraphKind : uint32_t { kDecoder = 0, kEncoder = 1 };

enum TermKind : uint16_t {
#define QD_TERM(number, constant, Type) constant = number,
#include "terms.def"
  kTermKinds
};

enum NumberKind : uint8_t {  // of params and of kFloats
#define QD_NUMBER(number, constant, bytes, scale, zero, element, upper) constant = number,
#include "numbers.def"
  kNumberKinds
};

struct Param {         // 24 bytes; positions are from the start of the term's plane 0
  uint64_t at;         // sub [rb][groups][16]
  uint64_t super_at;   // super [rb][ceil(groups / super_span)][16]
  uint32_t super_span; // groups per super value
  uint8_t kind;        // NumberKind; kNo: absent (scale 1, zero as `zero_for_all`, offset 0)
  uint8_t super_kind;  // kNo, kF32 or kF16
  uint16_t reserved;
};
static_assert(sizeof(Param) == 24, "a param is 24 bytes");

struct Term {            // 192 bytes
  uint16_t kind;         // TermKind
  uint8_t planes;        // P of kPlanes, otherwise 1
  uint8_t element;       // NumberKind of kFloats
  uint32_t first_block;  // records of plane p: blocks[first_block + p]; in the stack they are not neighbours
  uint32_t group, groups;
  float zero_for_all;    // where zero.kind is kNo
  uint32_t rank;         // kBitstack
  uint32_t width, books, levels;  // kVector: width of an entry, codebooks, entries of each
  uint32_t tables;       // kTable*: how many tables (1 .. 256)
  uint32_t table_tensor; // kTable*: resident float32 [tables][16 or 8]; kVector: its codebooks
  uint32_t itable_tensor; // kTable*: resident int8 [tables][16 or 8]: rint(value / table_unit)
  float table_unit;
  uint32_t entries;      // kSparse: how many
  uint64_t codes_at;     // from the start of plane 0; planes above 0 are codes only
  uint64_t select_at;    // kTable* with more than one table: uint8 [rb][groups][16]
  Param scale, zero, offset;  // zero: kU8, kF16, kF32 in the code domain; offset: in the value domain
  uint64_t bias_at;      // [row block][16]: what is added to each product with a row
  uint8_t bias_kind;     // kNo: nothing; kF16, kF32
  uint8_t ladder;        // 1: the block of every plane holds params and a bias, all at the places of plane 0, and those of
                         // the last resident plane count. Codes are then at the start of the block
  uint8_t reserved[38];
};
static_assert(sizeof(Term) == 192, "a term is 192 bytes");

struct Matrix {          // 64 bytes
  uint32_t rows, columns;
  uint32_t padded_columns;
  uint32_t first_term, terms;
  uint32_t map_tensor;   // int32 [padded_columns], or kNone
  uint32_t scale_tensor; // float32 [rows], after the sum, or kNone
  uint32_t name_at;      // in metadata: a string that ends with 0
  uint8_t reserved[32];
};
static_assert(sizeof(Matrix) == 64, "a matrix is 64 bytes");

struct Block {         // 32 bytes, in the order of terms and planes; their order in the stack is that of `at`
  uint64_t at, bytes;  // in the stack
  uint32_t term, plane;
  uint32_t reserved[2];
};
static_assert(sizeof(Block) == 32, "a block is 32 bytes");

struct RungRecord {  // 16 bytes; rung r at index r - 1
  uint64_t bytes;    // end of block r - 1 in the stack
  double error;
};
static_assert(sizeof(RungRecord) == 16, "a rung is 16 bytes");

struct Tensor {  // 32 bytes
  uint64_t at;   // in the resident part
  uint64_t bytes;
  uint32_t kind;  // TensorKind
  uint32_t count;
  uint64_t reserved;
};
static_assert(sizeof(Tensor) == 32, "a tensor is 32 bytes");
enum TensorKind : uint32_t { kFloat32 = 0, kInt32 = 1, kInt8 = 2, kTensorKinds = 3 };

struct Value {       // 32 bytes: what nodes pass on
  uint32_t kind;     // ValueKind
  uint32_t width;    // floats per token (per sequence)
  uint32_t slot;     // kPerToken: first float in the arena of one token; kPerSequence: the same, at the first token
  uint32_t name_at;  // inputs and outputs: in metadata; otherwise kNone
  uint32_t role;     // Role
  uint32_t reserved[3];
};
static_assert(sizeof(Value) == 32, "a value is 32 bytes");
enum Role : uint32_t { kInner = 0, kInput = 1, kOutput = 2, kRoles = 3 };
enum ValueKind : uint32_t { kPerToken = 0, kPerSequence = 1, kIds = 2 };  // kIds: int32 inputs [tokens], in no arena

enum Op : uint16_t {
#define QD_OP(number, constant, inputs, at_least, outputs, attributes, matrix, ids, fits, run) constant = number,
#include "ops.def"
  kOps
};
enum Activation : uint32_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kTanh = 4, kSigmoid = 5, kActivations = 6 };

struct Node {           // 64 bytes, in an order in which they can run
  uint16_t op, reserved;
  uint32_t inputs[4];   // value ids, or kNone
  uint32_t outputs[2];
  uint32_t matrix;
  uint32_t tensors[2];
  uint32_t state;
  uint32_t attr, attrs; // first word in `attributes`, and how many
  uint32_t reserved2[3];
};
static_assert(sizeof(Node) == 64, "a node is 64 bytes");

struct State {  // 16 bytes
  uint32_t heads, head_dim;
  uint32_t value_dim;  // of heads of values; 0: head_dim
  uint32_t kind;       // StateKind
};
// kCache: keys and values of every token. kConvState: the last head_dim tokens of `heads` channels. kRecurrent: a matrix
// [head_dim][value_dim] per head.
enum StateKind : uint32_t { kCache = 0, kConvState = 1, kRecurrent = 2, kStateKinds = 3 };
static_assert(sizeof(State) == 16, "a state is 16 bytes");

// Metadata: a run of bytes that records and strings point into. It starts with uint32 n and n entries
// {uint32 key_at, key_bytes, uint64 value_at, value_bytes}, positions from the start of the section, keys sorted.
struct MetaEntry {
  uint32_t key_at, key_bytes;
  uint64_t value_at, value_bytes;
};
static_assert(sizeof(MetaEntry) == 24, "a metadata entry is 24 bytes");

}  // namespace qd::format
