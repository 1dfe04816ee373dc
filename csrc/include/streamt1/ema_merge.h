// EMA of an evicted KV block into a sink block. The contract is written in kernels/ema_merge.py.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace streamt1 {

enum class KVType { kFloat32, kBFloat16, kFloat16 };
enum class Storage { kOnce, kFloat32Shadow, kStochastic, kReleased };

constexpr int64_t kMaxPlanes = 65535;               // of a CUDA grid's second axis
constexpr int64_t kMaxElements = int64_t{1} << 30;  // of a plane
constexpr int kMaxHeadDim = 256;
constexpr int kMaxTurned = 48;  // temporal pairs of the largest head

// One merge. Addresses are of plane 0; strides are elements from a plane to the next; a plane's
// `elements` lie dense. `out` may be `sink` itself. Plain data: a CUDA kernel takes it by value.
struct EmaMerge {
  void* out;
  const void* sink;
  const void* evicted;
  const float* shadow_in;  // null: start from `sink`
  float* shadow_out;       // kFloat32Shadow only
  int64_t out_stride, sink_stride, evicted_stride, shadow_in_stride, shadow_out_stride;
  int64_t planes;  // keys in the first half, values in the second
  int64_t elements;
  int32_t head_dim;
  int32_t turned;  // leading pairs of every key that turn; 0 without a shift
  float alpha, rest;
  KVType type;
  Storage storage;
  uint32_t key[2], step;  // of the random bits
  float cos[kMaxTurned], sin[kMaxTurned];
};

// Checked arguments as a merge; std::invalid_argument says what was wanted.
// addresses, strides: out, sink, evicted, shadow_in, shadow_out; 0 where there is no shadow.
// sizes: planes, elements of a plane, head_dim. bits: key, key, step.
EmaMerge ema_merge_of(const std::array<uintptr_t, 5>& addresses,
                      const std::array<int64_t, 5>& strides, const std::array<int64_t, 3>& sizes,
                      const std::string& dtype, const std::string& storage, double alpha,
                      const std::vector<float>& cos, const std::vector<float>& sin,
                      const std::array<uint32_t, 3>& bits);

// std::invalid_argument unless everything comes in whole 16 bytes and no vector crosses a head.
void check_vectors(const EmaMerge& merge);

// On at most `threads` threads.
void ema_merge(const EmaMerge& merge, int threads);

// What the CUDA kernel's threads do, one after another on the CPU. For tests.
void ema_merge_emulated(const EmaMerge& merge);

// Enqueues on `stream` of the current device and returns null, or what CUDA says is wrong.
const char* ema_merge_cuda(const EmaMerge& merge, void* stream);

}  // namespace streamt1
