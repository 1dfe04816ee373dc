// What one CUDA thread does to pack frames. frame_pack.cu launches it; frame_pack_emulated.cpp runs
// the same functions thread by thread on the CPU. The contract is written in kernels/frame_pack.py.
#pragma once

#include <cstdint>

#include "streamt1/frame_pack.h"
#include "streamt1/pixels.h"

namespace streamt1 {
namespace pack {

using namespace pixels;

constexpr int kThreads = 256;  // of a block
constexpr int kAccess = 16;    // bytes read or written at once where the addresses allow it

// Pixels that one 16-byte access reads.
template <typename T>
constexpr int kLanes = kAccess / static_cast<int>(sizeof(T));

// A block of the RGB kernel packs this many pixels of one frame, in order.
template <typename T>
constexpr int kTile = kThreads * kLanes<T>;

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T lane[kCount];
};

template <typename T>
STREAMT1_BOTH const T* plane_of(const PackJob& job, int64_t frame, int64_t colour) {
  const int64_t plane = job.shape.height * job.shape.width;
  return static_cast<const T*>(job.frames) + (3 * frame + colour) * plane;
}

// First half of the RGB kernel: `thread` leaves kLanes<T> pixels of the tile in `shared` [3 *
// kTile<T> bytes], interleaved, as whole words. kAligned: aligned_tiles(job).
template <typename T, bool kAligned>
STREAMT1_BOTH void rgb24_read(const PackJob& job, int64_t frame, int64_t tile, int thread,
                              uint32_t* shared) {
  constexpr int kCount = kLanes<T>, kWords = 3 * kCount / 4;
  const int64_t pixels = job.shape.height * job.shape.width;
  const int64_t first = tile * kTile<T> + thread * kCount;
  if (first >= pixels) return;
  uint32_t words[kWords] = {};
  for (int colour = 0; colour < 3; ++colour) {
    const T* from = plane_of<T>(job, frame, colour) + first;
    Vector<T, kCount> values = {};
    if (kAligned) {
      values = *reinterpret_cast<const Vector<T, kCount>*>(from);
    } else {
      for (int i = 0; i < kCount; ++i)
        if (first + i < pixels) values.lane[i] = from[i];
    }
    for (int i = 0; i < kCount; ++i) {
      const int byte = 3 * i + colour;
      words[byte / 4] |= uint32_t{quantise(values.lane[i], job.range)} << (byte % 4 * 8);
    }
  }
  for (int i = 0; i < kWords; ++i) shared[thread * kWords + i] = words[i];
}

// Second half, after every thread of the block is done with the first: the tile's bytes go out in
// order, 16 at a time.
template <typename T, bool kAligned>
STREAMT1_BOTH void rgb24_write(const PackJob& job, int64_t frame, int64_t tile, int thread,
                               const uint32_t* shared) {
  using Access = Vector<uint32_t, 4>;
  const int64_t pixels = job.shape.height * job.shape.width;
  const int64_t first = tile * kTile<T>, left = pixels - first;
  const int bytes = 3 * static_cast<int>(left < kTile<T> ? left : kTile<T>);
  uint8_t* out = job.out + 3 * (frame * pixels + first);
  const int whole = kAligned ? bytes / kAccess : 0;
  for (int i = thread; i < whole; i += kThreads)
    reinterpret_cast<Access*>(out)[i] = reinterpret_cast<const Access*>(shared)[i];
  for (int i = whole * kAccess + thread; i < bytes; i += kThreads)
    out[i] = static_cast<uint8_t>(shared[i / 4] >> (i % 4 * 8));
}

// Threads that one frame of the YUV kernel needs: each takes kCount pixels of two rows.
template <int kCount>
STREAMT1_BOTH uint32_t yuv420_threads(const FrameShape& shape) {
  return static_cast<uint32_t>((shape.height / 2) * (shape.width / kCount));
}

template <typename T, int kCount>
STREAMT1_BOTH void read_pixels(float* to, const T* from, Range range) {
  // kCount is 2 where rows do not begin at multiples of 16 bytes.
  if (kCount == kLanes<T>) {
    const auto values = *reinterpret_cast<const Vector<T, kCount>*>(from);
    for (int i = 0; i < kCount; ++i) to[i] = unit_of(read(values.lane[i]), range);
  } else {
    for (int i = 0; i < kCount; ++i) to[i] = unit_of(read(from[i]), range);
  }
}

template <int kCount>
STREAMT1_BOTH void write_bytes(uint8_t* to, const Vector<uint8_t, kCount>& bytes) {
  *reinterpret_cast<Vector<uint8_t, kCount>*>(to) = bytes;
}

// `thread` of the whole frame: kCount pixels of two rows to their Y, Cb and Cr. The width is a
// multiple of kCount, so every address below is a multiple of what is written there.
template <typename T, int kCount>
STREAMT1_BOTH void yuv420_write(const PackJob& job, int64_t frame, uint32_t thread) {
  const int64_t width = job.shape.width, plane = job.shape.height * width;
  const uint32_t across = static_cast<uint32_t>(width / kCount);  // a division of 64 bits is slow
  const int64_t pair = thread / across, x = int64_t{thread % across} * kCount;
  const int64_t start = 2 * pair * width + x;  // of the upper row
  float pixels[2][3][kCount];
  for (int row = 0; row < 2; ++row)
    for (int colour = 0; colour < 3; ++colour)
      read_pixels<T, kCount>(pixels[row][colour],
                             plane_of<T>(job, frame, colour) + start + row * width, job.range);

  uint8_t* y = job.out + frame * (plane + plane / 2);
  for (int row = 0; row < 2; ++row) {
    const auto& [r, g, b] = pixels[row];
    Vector<uint8_t, kCount> bytes;
    for (int i = 0; i < kCount; ++i) bytes.lane[i] = y_of({r[i], g[i], b[i]});
    write_bytes<kCount>(y + start + row * width, bytes);
  }

  Vector<uint8_t, kCount / 2> cb, cr;
  for (int i = 0; i < kCount / 2; ++i) {
    float means[3];
    for (int colour = 0; colour < 3; ++colour) {
      const float *above = pixels[0][colour] + 2 * i, *below = pixels[1][colour] + 2 * i;
      means[colour] = mean_of(above[0], above[1], below[0], below[1]);
    }
    const Colour block = {means[0], means[1], means[2]};
    cb.lane[i] = cb_of(block);
    cr.lane[i] = cr_of(block);
  }
  uint8_t* u = y + plane + (pair * width + x) / 2;
  write_bytes<kCount / 2>(u, cb);
  write_bytes<kCount / 2>(u + plane / 4, cr);
}

// Whether planes and packed frames all begin at multiples of 16 bytes, so that whole tiles do.
inline bool aligned_tiles(const PackJob& job) {
  const auto in = reinterpret_cast<uintptr_t>(job.frames),
             out = reinterpret_cast<uintptr_t>(job.out);
  return (in | out) % kAccess == 0 && job.shape.height * job.shape.width % kAccess == 0;
}

// Whether every row can be read 16 bytes at a time.
template <typename T>
bool aligned_rows(const PackJob& job) {
  const auto in = reinterpret_cast<uintptr_t>(job.frames),
             out = reinterpret_cast<uintptr_t>(job.out);
  return (in | out) % kAccess == 0 && job.shape.width % kLanes<T> == 0;
}

}  // namespace pack
}  // namespace streamt1
