// In builds with AddressSanitizer, ranges that share one reservation end in bytes that nothing may touch; in others this is
// nothing.
#pragma once
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define QD_GUARDS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QD_GUARDS 1
#endif
#endif

#ifdef QD_GUARDS
#include <sanitizer/asan_interface.h>
#endif

namespace qd {

#ifdef QD_GUARDS
constexpr uint64_t kGuard = 64;
inline void forbid(const uint8_t* at, uint64_t bytes) { ASAN_POISON_MEMORY_REGION(at, bytes); }
inline void allow(const uint8_t* at, uint64_t bytes) { ASAN_UNPOISON_MEMORY_REGION(at, bytes); }
#else
constexpr uint64_t kGuard = 0;
inline void forbid(const uint8_t*, uint64_t) {}
inline void allow(const uint8_t*, uint64_t) {}
#endif

}  // namespace qd
