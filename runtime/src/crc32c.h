#pragma once
#include <cstddef>
#include <cstdint>

namespace qd {

// CRC-32C (Castagnoli, reflected, as iSCSI has it) of n bytes; `crc` is that of the bytes before, 0 at the start.
uint32_t crc32c(uint32_t crc, const void* bytes, size_t n);

}  // namespace qd
