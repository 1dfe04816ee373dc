#include "streamt1/philox.h"

#include <cmath>
#include <cstring>

#include "streamt1/dispatch.h"

namespace streamt1 {
namespace {

constexpr int kTileBlocks = kTileValues / 4;  // counters worked on together: four registers of 16

STREAMT1_INLINE void philox_rounds(uint32_t c[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    c[0] = n0;
    c[2] = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

STREAMT1_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

STREAMT1_INLINE double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// ln((word + 1/2) / 2^32), in (-22.9, 0).
STREAMT1_INLINE double log_unit(uint32_t word) {
  constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCDu;
  constexpr uint64_t kBias = 64;  // keeps the exponent positive, so that the shift is a logical one
  const double x = static_cast<double>(static_cast<int32_t>(word ^ 0x80000000u)) + 2147483648.5;
  const uint64_t bits = bits_of(x);
  const uint64_t exponent = (bits - kSqrtHalf + (kBias << 52)) >> 52;
  const double m = double_of(bits - ((exponent - kBias) << 52));  // in [sqrt(1/2), sqrt(2))
  const double e = double_of(exponent | 0x4330000000000000u) - (4503599627370496.0 + 32 + kBias);
  const double f = m - 1.0;
  const double s = f / (f + 2.0);
  const double z = s * s;
  double p = 1.0 / 23;
  p = p * z + 1.0 / 21;
  p = p * z + 1.0 / 19;
  p = p * z + 1.0 / 17;
  p = p * z + 1.0 / 15;
  p = p * z + 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  p = p * z + 1.0;
  return e * 0x1.62e42fefa39efp-1 + (s + s) * p;
}

// Two independent standard normal values from two words.
STREAMT1_INLINE void box_muller(uint32_t a, uint32_t b, float* first, float* second) {
  const double r = std::sqrt(-2.0 * log_unit(a));
  const uint32_t quadrant = (b >> 30) + ((b >> 29) & 1u);
  // The angle left after whole quadrants, in [-pi/4, pi/4]; the subtraction wraps on purpose.
  const double turn = static_cast<double>(static_cast<int32_t>(b - (quadrant << 30))) + 0.5;
  const double t = turn * 0x1p-30 * 0x1.921fb54442d18p+0;
  const double z = t * t;
  double s = 1.0 / 355687428096000.0;
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = s * z + 1.0;
  s = s * t;
  double c = 1.0 / 20922789888000.0;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 1.0 / 2.0;
  c = c * z + 1.0;
  const bool odd = quadrant & 1u;
  const double x = odd ? s : c;
  const double y = odd ? c : s;
  *first = static_cast<float>(r * (((quadrant + 1u) & 2u) ? -x : x));
  *second = static_cast<float>(r * ((quadrant & 2u) ? -y : y));
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void philox_tile(float* out, int64_t tile, const Stream& stream) {
  alignas(64) uint32_t words[4][kTileBlocks];
  alignas(64) float values[4][kTileBlocks];
  const auto first = static_cast<uint32_t>(tile * kTileBlocks);
  for (int i = 0; i < kTileBlocks; ++i) {
    uint32_t c[4] = {first + static_cast<uint32_t>(i), stream.counter[0], stream.counter[1],
                     stream.counter[2]};
    philox_rounds(c, stream.key[0], stream.key[1]);
    words[0][i] = c[0];
    words[1][i] = c[1];
    words[2][i] = c[2];
    words[3][i] = c[3];
  }
  for (int i = 0; i < kTileBlocks; ++i)
    box_muller(words[0][i], words[1][i], &values[0][i], &values[1][i]);
  for (int i = 0; i < kTileBlocks; ++i)
    box_muller(words[2][i], words[3][i], &values[2][i], &values[3][i]);
  for (int i = 0; i < kTileBlocks; ++i)
    for (int j = 0; j < 4; ++j) out[4 * i + j] = values[j][i];
}

Words4 philox4x32_10(const Words4& counter, const Words2& key) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
  philox_rounds(c, key[0], key[1]);
  return {c[0], c[1], c[2], c[3]};
}

Stream stream_of(const int64_t* row) {
  constexpr uint32_t kStream = 0x53547431u;  // STREAM in kernels/philox_triton.py
  const auto seed = static_cast<uint64_t>(row[0]);
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
          {static_cast<uint32_t>(row[2]), static_cast<uint32_t>(row[1]), kStream}};
}

}  // namespace streamt1
