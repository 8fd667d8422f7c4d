#include "crc32c.h"

#include <cstring>

namespace qd {
namespace {

struct Tables {
  uint32_t at[8][256];
};

constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ ((c & 1) ? 0x82f63b78u : 0u);
    t.at[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (int k = 1; k < 8; ++k) t.at[k][i] = (t.at[k - 1][i] >> 8) ^ t.at[0][t.at[k - 1][i] & 255];
  return t;
}

constexpr Tables kCrc = make_tables();

}  // namespace

// Eight bytes at a time: table k advances a byte over k more zero bytes.
uint32_t crc32c(uint32_t crc, const void* bytes, size_t n) {
  const uint8_t* p = static_cast<const uint8_t*>(bytes);
  uint32_t c = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    uint32_t a, b;
    std::memcpy(&a, p, 4);
    std::memcpy(&b, p + 4, 4);
    a ^= c;
    c = kCrc.at[7][a & 255] ^ kCrc.at[6][(a >> 8) & 255] ^ kCrc.at[5][(a >> 16) & 255] ^ kCrc.at[4][a >> 24] ^
        kCrc.at[3][b & 255] ^ kCrc.at[2][(b >> 8) & 255] ^ kCrc.at[1][(b >> 16) & 255] ^ kCrc.at[0][b >> 24];
  }
  for (; n > 0; --n, ++p) c = (c >> 8) ^ kCrc.at[0][(c ^ *p) & 255];
  return ~c;
}

}  // namespace qd
