// What binding.cpp checks before a kernel runs: addresses, names and sizes as Python passes them.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>

#include "streamt1/frame_pack.h"
#include "streamt1/philox.h"
#include "streamt1/reward_patches.h"
#include "streamt1/slerp_noise.h"

namespace streamt1 {
template <typename T>
T* pointer(uintptr_t address, const char* name) {
  if (address == 0) throw std::invalid_argument(std::string(name) + ": want an address, got 0");
  return reinterpret_cast<T*>(address);
}

inline int positive(int threads) {
  if (threads < 1) throw std::invalid_argument("threads: want at least 1");
  return threads;
}
template <size_t N>
void at_least_one(const std::array<int64_t, N>& sizes) {
  for (const int64_t size : sizes)
    if (size < 1) throw std::invalid_argument("shape: want sizes of at least 1");
}

inline Float float_type(const std::string& name) {
  if (name == "float32") return Float::kFloat32;
  if (name == "bfloat16") return Float::kBFloat16;
  if (name == "float16") return Float::kFloat16;
  throw std::invalid_argument("dtype: want float32, bfloat16 or float16, got " + name);
}

inline Pixel pixel(const std::string& name) {
  if (name == "float32") return Pixel::kFloat32;
  if (name == "bfloat16") return Pixel::kBFloat16;
  if (name == "float16") return Pixel::kFloat16;
  if (name == "uint8") return Pixel::kUInt8;
  throw std::invalid_argument("dtype: want float32, bfloat16, float16 or uint8, got " + name);
}

inline FrameShape frame_shape(const std::array<int64_t, 3>& sizes) {
  for (const int64_t size : sizes)
    if (size < 1) throw std::invalid_argument("shape: want frames, height, width of at least 1");
  if (sizes[1] > ((int64_t{1} << 31) - 1) / sizes[2])
    throw std::invalid_argument("shape: want fewer than 2^31 pixels a frame");
  return {sizes[0], sizes[1], sizes[2]};
}

// `from` is addresses of the rows to blend with and of their index, 0 where there is none; `sizes`
// is rows, rows to blend with, elements of a row.
inline Noise noise_rows(uintptr_t out, const std::string& dtype, uintptr_t streams,
                        const std::array<uintptr_t, 2>& from, const std::array<int64_t, 3>& sizes) {
  const auto [rows, sources, elements] = sizes;
  if (rows < 1 || elements < 1) throw std::invalid_argument("shape: want sizes of at least 1");
  const auto* parents = reinterpret_cast<const int32_t*>(from[1]);
  for (int64_t row = 0; parents && row < rows; ++row)
    if (parents[row] < 0 || parents[row] >= sources)
      throw std::invalid_argument("parents: want rows in [0, " + std::to_string(sources) +
                                  "), got " + std::to_string(parents[row]));
  return {pointer<void>(out, "out"),
          reinterpret_cast<const void*>(from[0]),
          parents,
          pointer<const int64_t>(streams, "streams"),
          rows,
          elements,
          float_type(dtype)};
}

inline PackJob pack_job(uintptr_t out, uintptr_t frames, const std::string& dtype,
                        const std::array<int64_t, 3>& sizes, float lowest) {
  return {pointer<uint8_t>(out, "out"), pointer<const void>(frames, "frames"), pixel(dtype),
          frame_shape(sizes), range_from(lowest)};
}

inline PackJob rgb24_job(uintptr_t out, uintptr_t frames, const std::string& dtype,
                         const std::array<int64_t, 3>& sizes, float lowest) {
  const auto job = pack_job(out, frames, dtype, sizes, lowest);
  if (job.type == Pixel::kUInt8) throw std::invalid_argument("dtype: uint8 is rgb24 already");
  return job;
}

inline PackJob yuv420_job(uintptr_t out, uintptr_t frames, const std::string& dtype,
                          const std::array<int64_t, 3>& sizes, float lowest) {
  const auto job = pack_job(out, frames, dtype, sizes, lowest);
  if (job.shape.height % 2 || job.shape.width % 2)
    throw std::invalid_argument("shape: want an even height and width");
  return job;
}

// Addresses of starts, weights and starts on the CPU; taps, size, resized.
using Axis = std::tuple<uintptr_t, uintptr_t, uintptr_t, int32_t, int32_t, int32_t>;

inline ResizeAxis resize_axis(const Axis& axis) {
  const auto [starts, weights, host_starts, taps, size, resized] = axis;
  if (taps < 1 || size < taps || resized < 1 || resized % kMergeSide)
    throw std::invalid_argument("axis: want taps from 1 to size and a multiple of 28 resized");
  return {pointer<const int32_t>(starts, "starts"),
          pointer<const int32_t>(weights, "weights"),
          pointer<const int32_t>(host_starts, "host_starts"),
          taps,
          size,
          resized};
}

inline PatchJob patch_job(uintptr_t out, const std::string& out_dtype, uintptr_t frames,
                          const std::string& dtype, int64_t frame_stride, int64_t count, bool video,
                          float lowest, const Axis& rows, const Axis& columns,
                          const std::array<float, 3>& scale, const std::array<float, 3>& shift) {
  if (count < 1) throw std::invalid_argument("frames: want at least 1");
  const auto out_type = pixel(out_dtype);
  if (out_type == Pixel::kUInt8) throw std::invalid_argument("out: want a float dtype");
  return {pointer<void>(out, "out"),
          out_type,
          pointer<const void>(frames, "frames"),
          pixel(dtype),
          frame_stride,
          count,
          video,
          range_from(lowest),
          resize_axis(rows),
          resize_axis(columns),
          {scale[0], scale[1], scale[2]},
          {shift[0], shift[1], shift[2]}};
}

inline void fits_a_block(const PatchJob& job) {
  if (reward_patches_shared_bytes(job) == 0)
    throw std::invalid_argument(
        "impl='cuda' cannot hold a tile of frames that shrink so much; use impl='triton'");
}

inline void launched(const char* kernel, const char* failure) {
  if (failure) throw std::runtime_error(std::string(kernel) + ": the launch failed: " + failure);
}
}  // namespace streamt1
