#include "cpu/quantize_blocks.h"

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

namespace ualm {

namespace {

// Columns worked on at once: their running values stay in registers and the first cache.
constexpr int64_t kColumns = 64;
constexpr float kSmallestNormalHalf = 6.103515625e-05f;  // 2^-14
constexpr float kLargestHalf = 65504.0f;

// Rounds to the nearest whole number, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits behind the point.
inline float round_even(float x) {
  constexpr float kShift = 12582912.0f;
  return (x + kShift) - kShift;
}

// The nearest float16 number, ties to even, no smaller than the smallest normal one and no larger than the largest.
inline float half_scale(float x) {
  if (!(x > kSmallestNormalHalf)) return kSmallestNormalHalf;
  if (x >= kLargestHalf) return kLargestHalf;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += 0x0FFF + ((bits >> 13) & 1);  // float16 keeps 10 of the 23 bits of the fraction
  bits &= ~uint32_t{0x1FFF};
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float whole_number(float value, float scale, float low, float high) {
  const float q = round_even(value / scale);
  return q < low ? low : (q > high ? high : q);
}

void quantize_columns(const float* matrix, int64_t outputs, int64_t first_row, int64_t first, int64_t width,
                      const BlockFormat& format, const float* importance, int8_t* whole, float* scales) {
  float peak[kColumns] = {};
  for (int64_t i = first_row; i < first_row + format.block; ++i) {
    const float* row = matrix + i * outputs + first;
    for (int64_t c = 0; c < width; ++c) {
      const float magnitude = std::fabs(row[c]);
      peak[c] = magnitude > peak[c] ? magnitude : peak[c];
    }
  }
  float best[kColumns], least[kColumns];
  for (int64_t d = 0; d < format.divisor_count; ++d) {
    float scale[kColumns], loss[kColumns] = {};
    for (int64_t c = 0; c < width; ++c) scale[c] = half_scale(peak[c] / format.divisors[d]);
    for (int64_t i = 0; i < format.block && format.divisor_count > 1; ++i) {
      const float* row = matrix + (first_row + i) * outputs + first;
      const float weight = importance != nullptr ? importance[first_row + i] : 1.0f;
      for (int64_t c = 0; c < width; ++c) {
        const float error = whole_number(row[c], scale[c], format.low, format.high) * scale[c] - row[c];
        loss[c] += weight * (error * error);
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      if (d == 0 || loss[c] < least[c]) {
        best[c] = scale[c];
        least[c] = loss[c];
      }
    }
  }
  for (int64_t i = first_row; i < first_row + format.block; ++i) {
    for (int64_t c = 0; c < width; ++c) {
      whole[i * outputs + first + c] =
          static_cast<int8_t>(whole_number(matrix[i * outputs + first + c], best[c], format.low, format.high));
    }
  }
  std::memcpy(scales + first_row / format.block * outputs + first, best, static_cast<size_t>(width) * sizeof(float));
}

}  // namespace

void quantize_blocks(const float* matrix, int64_t inputs, int64_t outputs, const BlockFormat& format,
                     const float* importance, int8_t* whole, float* scales, int threads) {
  const int64_t tiles = (outputs + kColumns - 1) / kColumns;
  const auto work = [=](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < inputs; row += format.block) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kColumns;
        const int64_t width = outputs - first < kColumns ? outputs - first : kColumns;
        quantize_columns(matrix, outputs, row, first, width, format, importance, whole, scales);
      }
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, tiles * t / threads, tiles * (t + 1) / threads);
  work(0, tiles / threads);
  for (std::thread& other : others) other.join();
}

}  // namespace ualm
