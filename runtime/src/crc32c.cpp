// The checksum of every page that is loaded, so it has to run at the speed of memory: with the processor's instruction
// where there is one, four quarters of a piece side by side; otherwise by tables.
#include "crc32c.h"

#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace qd {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;  // reflected
constexpr size_t kQuarter = 4096;

struct Tables {
  uint32_t at[8][256];     // table k advances a byte over k more zero bytes
  uint32_t quarter[4][256];  // byte k of a checksum, advanced over kQuarter zero bytes
};

struct Matrix {  // of bits: column i is what bit i becomes
  uint32_t column[32];
};

constexpr uint32_t product(const Matrix& m, uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; v; ++i, v >>= 1)
    if (v & 1) r ^= m.column[i];
  return r;
}

constexpr Matrix squared(const Matrix& m) {
  Matrix r{};
  for (int i = 0; i < 32; ++i) r.column[i] = product(m, m.column[i]);
  return r;
}

constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ ((c & 1) ? kPolynomial : 0u);
    t.at[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (int k = 1; k < 8; ++k) t.at[k][i] = (t.at[k - 1][i] >> 8) ^ t.at[0][t.at[k - 1][i] & 255];
  Matrix zeros{};  // one zero bit, squared until it is kQuarter bytes
  zeros.column[0] = kPolynomial;
  for (int i = 1; i < 32; ++i) zeros.column[i] = 1u << (i - 1);
  for (size_t bits = 1; bits < 8 * kQuarter; bits *= 2) zeros = squared(zeros);
  for (uint32_t i = 0; i < 256; ++i)
    for (int k = 0; k < 4; ++k) t.quarter[k][i] = product(zeros, i << (8 * k));
  return t;
}

constexpr Tables kCrc = make_tables();

uint32_t by_tables(uint32_t c, const uint8_t* p, size_t n) {
  for (; n >= 8; n -= 8, p += 8) {
    uint32_t a, b;
    std::memcpy(&a, p, 4);
    std::memcpy(&b, p + 4, 4);
    a ^= c;
    c = kCrc.at[7][a & 255] ^ kCrc.at[6][(a >> 8) & 255] ^ kCrc.at[5][(a >> 16) & 255] ^ kCrc.at[4][a >> 24] ^
        kCrc.at[3][b & 255] ^ kCrc.at[2][(b >> 8) & 255] ^ kCrc.at[1][(b >> 16) & 255] ^ kCrc.at[0][b >> 24];
  }
  for (; n > 0; --n, ++p) c = (c >> 8) ^ kCrc.at[0][(c ^ *p) & 255];
  return c;
}

#if defined(__x86_64__)
#define QD_CRC_TARGET __attribute__((target("sse4.2")))
bool has_instruction() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2");
}
QD_CRC_TARGET inline uint32_t advance(uint32_t c, const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return static_cast<uint32_t>(__builtin_ia32_crc32di(c, v));
}
#elif defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))
#define QD_CRC_TARGET
bool has_instruction() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & (1ul << 7)) != 0;  // HWCAP_CRC32
#else
  return true;
#endif
}
inline uint32_t advance(uint32_t c, const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %1" : "+r"(c) : "r"(v));
  return c;
}
#else
#define QD_CRC_TARGET
bool has_instruction() { return false; }
inline uint32_t advance(uint32_t c, const uint8_t* p) { return by_tables(c, p, 8); }
#endif

inline uint32_t over_quarter(uint32_t c) {
  return kCrc.quarter[0][c & 255] ^ kCrc.quarter[1][(c >> 8) & 255] ^ kCrc.quarter[2][(c >> 16) & 255] ^
         kCrc.quarter[3][c >> 24];
}

// The instruction waits three cycles for itself: four chains hide that, and are joined at the end.
QD_CRC_TARGET uint32_t by_instruction(uint32_t c, const uint8_t* p, size_t n) {
  for (; n >= 4 * kQuarter; n -= 4 * kQuarter, p += 4 * kQuarter) {
    uint32_t d = 0, e = 0, f = 0;
    for (size_t i = 0; i < kQuarter; i += 8) {
      c = advance(c, p + i);
      d = advance(d, p + kQuarter + i);
      e = advance(e, p + 2 * kQuarter + i);
      f = advance(f, p + 3 * kQuarter + i);
    }
    c = over_quarter(over_quarter(over_quarter(c) ^ d) ^ e) ^ f;
  }
  for (; n >= 8; n -= 8, p += 8) c = advance(c, p);
  return by_tables(c, p, n);
}

}  // namespace

uint32_t crc32c(uint32_t crc, const void* bytes, size_t n) {
  const uint8_t* p = static_cast<const uint8_t*>(bytes);
  return ~(has_instruction() ? by_instruction(~crc, p, n) : by_tables(~crc, p, n));
}

}  // namespace qd
