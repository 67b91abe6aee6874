// The emulator's twins of the functions in csrc/cuda/mma.cuh; cuda_runtime.h includes this file.
//
// An asynchronous copy arrives when its thread waits for it, and not before: until then its target holds 0xCD
// bytes. Products of matrices are exact; they are added up in double and rounded once. A GPU may round each sum.
#pragma once

#include "core/scalar.h"

namespace emulator {

template <int bytes> void copy_async(void* to, const void* from) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0)
    fail("misaligned address", "cp.async");
  Copy copy{to, bytes, {}};
  std::memcpy(copy.value, from, bytes);
  std::memset(to, 0xCD, bytes);
  machine.current->copies.push_back(copy);
}

inline void wait_for_copies() {
  for (const Copy& copy : machine.current->copies) std::memcpy(copy.to, copy.value, copy.bytes);
  machine.current->copies.clear();
}

inline void load_matrices(uint32_t (&out)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("misaligned address", "ldmatrix");
  const unsigned lane = machine.current->lane;
  const auto rows = meet(0xFFFFFFFFu, static_cast<const unsigned char*>(row), "ldmatrix");
  for (unsigned m = 0; m < 4; ++m) {
    unsigned char bytes[4];
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned r = transposed ? lane % 4 * 2 + k / 2 : lane / 4;
      const unsigned byte = transposed ? lane / 4 * 2 + k % 2 : lane % 4 * 4 + k;
      bytes[k] = rows.from(8 * m + r)[byte];
    }
    std::memcpy(&out[m], bytes, 4);
  }
  __syncwarp(); // the rows may be written once all lanes have read them
}

inline uint32_t tf32_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu; // NaN
  if ((bits & 0x7F800000u) == 0x7F800000u) return bits;       // infinite
  return (bits + 0x1000u) & ~0x1FFFu;
}

// The numbers in a word of a matrix: one in TF32, of which the last 13 bits are ignored, or two of 16 bits.
template <class T> void numbers(uint32_t word, double (&out)[4 / sizeof(T)]) {
  if constexpr (sizeof(T) == 4) {
    out[0] = __uint_as_float(word & ~0x1FFFu);
  } else {
    for (int k = 0; k < 2; ++k) {
      const T value{static_cast<uint16_t>(word >> (16 * k))};
      if constexpr (std::is_same_v<T, occfast::Half>) {
        out[k] = occfast::float_from_half(value);
      } else {
        out[k] = occfast::float_from_bfloat16(value);
      }
    }
  }
}

template <class T> void add_product(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kOfWord = 4 / sizeof(T);
  const unsigned r = machine.current->lane / 4, column = machine.current->lane % 4 * 2;
  uint4 rows[4]; // of both rows, read before any lane brings something else
  const auto left = meet(0xFFFFFFFFu, uint4{a[0], a[1], a[2], a[3]}, "mma");
  for (unsigned c = 0; c < 4; ++c) rows[c] = left.from(4 * r + c);
  const auto right = meet(0xFFFFFFFFu, uint2{b[0], b[1]}, "mma, second factor");
  for (unsigned k = 0; k < 4; ++k) {
    double sum = sums[k];
    for (unsigned c = 0; c < 4; ++c) {
      const uint2 y = right.from(4 * (column + k % 2) + c);
      const uint32_t of_row[2] = {k < 2 ? rows[c].x : rows[c].y, k < 2 ? rows[c].z : rows[c].w};
      const uint32_t of_column[2] = {y.x, y.y};
      for (int word = 0; word < 2; ++word) {
        double p[kOfWord], q[kOfWord];
        numbers<T>(of_row[word], p);
        numbers<T>(of_column[word], q);
        for (int n = 0; n < kOfWord; ++n) sum += p[n] * q[n];
      }
    }
    sums[k] = static_cast<float>(sum);
  }
}

} // namespace emulator
