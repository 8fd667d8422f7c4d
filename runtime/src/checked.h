// Sums and products of numbers that a file names. What does not fit into 64 bits is remembered, and fits nowhere.
#pragma once
#include <cstdint>
#include <limits>

namespace qd {

class Checked {
 public:
  constexpr Checked(uint64_t n = 0) : value_(n) {}
  // A number that is not allowed: it fits nowhere.
  static constexpr Checked none() { return Checked(0, false); }

  friend constexpr Checked operator+(Checked a, Checked b) {
    uint64_t sum = 0;
    bool fits = !__builtin_add_overflow(a.value_, b.value_, &sum);
    return Checked(sum, fits && a.good_ && b.good_);
  }
  friend constexpr Checked operator*(Checked a, Checked b) {
    uint64_t product = 0;
    bool fits = !__builtin_mul_overflow(a.value_, b.value_, &product);
    return Checked(product, fits && a.good_ && b.good_);
  }
  Checked& operator+=(Checked other) { return *this = *this + other; }

  constexpr Checked rounded_up(uint64_t to) const {
    Checked sum = *this + (to - 1);
    return Checked(sum.value_ / to, sum.good_) * to;
  }

  constexpr bool good() const { return good_; }
  // The greatest number of all where it is not good, so that no limit and no budget allows it.
  constexpr uint64_t value() const { return good_ ? value_ : UINT64_MAX; }
  constexpr bool at_most(uint64_t limit) const { return good_ && value_ <= limit; }

 private:
  constexpr Checked(uint64_t n, bool good) : value_(n), good_(good) {}
  uint64_t value_;
  bool good_ = true;
};

// Whether a count of bytes is one that an address space of this width has (32 bits on many small machines).
template <class Size>
constexpr bool is_size(uint64_t n) {
  return n <= std::numeric_limits<Size>::max();
}

}  // namespace qd
