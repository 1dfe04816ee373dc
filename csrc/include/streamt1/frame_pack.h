// Frames in [0, 1] to 8-bit pixels. The contract is written in kernels/frame_pack.py.
#pragma once

#include <cstdint>

namespace streamt1 {

enum class Pixel { kFloat32, kBFloat16, kFloat16, kUInt8 };

struct FrameShape {
  int64_t frames;
  int64_t height;
  int64_t width;
};

// planar [T, 3, H, W] floating point -> interleaved [T, H, W, 3]. `type` is not kUInt8.
void pack_rgb24(uint8_t* out, const void* frames, Pixel type, const FrameShape& shape, int threads);

// planar [T, 3, H, W] floating point, or interleaved [T, H, W, 3] if `type` is kUInt8, -> I420 [T,
// H * W * 3 / 2]. H and W are even.
void pack_yuv420(uint8_t* out, const void* frames, Pixel type, const FrameShape& shape,
                 int threads);

}  // namespace streamt1
