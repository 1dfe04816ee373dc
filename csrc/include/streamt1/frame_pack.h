// Frames to 8-bit pixels. The contract is written in kernels/frame_pack.py.
#pragma once

#include <cstdint>

#include "streamt1/pixels.h"

namespace streamt1 {

struct PackJob {
  uint8_t* out;
  const void* frames;
  Pixel type;
  FrameShape shape;
  Range range;
};

// planar [T, 3, H, W] floating point -> interleaved [T, H, W, 3]. The type is not kUInt8.
void pack_rgb24(const PackJob& job, int threads);

// planar [T, 3, H, W] floating point, or interleaved [T, H, W, 3] if the type is kUInt8, -> I420
// [T, H * W * 3 / 2]. H and W are even.
void pack_yuv420(const PackJob& job, int threads);

// The CUDA kernels' own code run on the CPU, thread by thread, for the tests. Not for kUInt8.
void pack_rgb24_emulated(const PackJob& job);
void pack_yuv420_emulated(const PackJob& job);

// On a GPU, on `stream`. Returns why the launch failed, or null. Not for kUInt8.
const char* pack_rgb24_cuda(const PackJob& job, void* stream);
const char* pack_yuv420_cuda(const PackJob& job, void* stream);

}  // namespace streamt1
