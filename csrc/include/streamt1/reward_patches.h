// Frames to the patches that Qwen2-VL reads. The contract is written in kernels/reward_patches.py.
#pragma once

#include <cstdint>

#include "streamt1/pixels.h"

namespace streamt1 {

// How one axis is resized; kernels/bicubic.py makes it. Every read lies inside the image.
struct ResizeAxis {
  const int32_t* starts;   // [resized], never falling
  const int32_t* weights;  // [taps, resized], with 22 bits of fraction
  const int32_t* host_starts;
  int32_t taps;
  int32_t size;
  int32_t resized;  // a multiple of 28
};

struct PatchJob {
  void* out;  // [groups * rows / 14 * columns / 14, 3, 2, 14, 14]
  Pixel out_type;
  const void*
      frames;  // [frame_count, 3, rows.size, columns.size], a frame every `frame_stride` values
  Pixel type;
  int64_t frame_stride;
  int64_t frame_count;
  bool video;  // two frames to a patch; else each frame twice
  Range range;
  ResizeAxis rows, columns;
  float scale[3], shift[3];  // value = byte * scale + shift
};

constexpr int kPatchSide = 14;
constexpr int kPatchPixels = kPatchSide * kPatchSide;
constexpr int kPatchFrames = 2;
constexpr int kMergeSide = 2 * kPatchSide;  // 2x2 patches follow each other

// Patches along time.
STREAMT1_BOTH int64_t groups_of(const PatchJob& job) {
  return job.video ? (job.frame_count + 1) / kPatchFrames : job.frame_count;
}

// Frame of a group that fills its first or second half of time. A last frame without a partner is
// repeated.
STREAMT1_BOTH int64_t frame_of(const PatchJob& job, int64_t group, int slot) {
  if (!job.video) return group;
  const int64_t frame = kPatchFrames * group + slot;
  return frame < job.frame_count ? frame : job.frame_count - 1;
}

// Where a patch stands among those of its group: `row` and `column` count patches.
STREAMT1_BOTH int64_t place_of(const PatchJob& job, int64_t row, int64_t column) {
  const int64_t merged = job.columns.resized / kMergeSide;
  return ((row / 2 * merged + column / 2) * 2 + row % 2) * 2 + column % 2;
}

STREAMT1_BOTH int64_t patches_of(const PatchJob& job) {
  return int64_t{job.rows.resized / kPatchSide} * (job.columns.resized / kPatchSide);
}

constexpr int kWeightBits = 22;
constexpr int32_t kWeightHalf = 1 << (kWeightBits - 1);

STREAMT1_BOTH uint8_t pixel_of(int32_t total) {
  const int32_t value = total >> kWeightBits;
  const int32_t low = value > 0 ? value : 0;
  return static_cast<uint8_t>(low < 255 ? low : 255);
}

void reward_patches(const PatchJob& job, int threads);

// The CUDA kernel's own code run on the CPU, thread by thread, for the tests.
void reward_patches_emulated(const PatchJob& job);

// On a GPU, on `stream`. Returns why the launch failed, or null.
const char* reward_patches_cuda(const PatchJob& job, void* stream);

// Bytes of shared memory that a block of the CUDA kernel needs, 0 if more than any GPU has.
int64_t reward_patches_shared_bytes(const PatchJob& job);

}  // namespace streamt1
