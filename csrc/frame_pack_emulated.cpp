// The CUDA kernels of frame_pack on the CPU: every thread of every block, one after the other.
#include <vector>

#include "streamt1/frame_pack.cuh"

namespace streamt1 {
namespace {

using namespace pack;

template <typename T, bool kAligned>
void rgb24(const PackJob& job) {
  const int64_t pixels = job.shape.height * job.shape.width;
  std::vector<Vector<uint32_t, 4>> shared(3 * kTile<T> / kAccess);
  uint32_t* words = shared.data()->lane;
  for (int64_t frame = 0; frame < job.shape.frames; ++frame) {
    for (int64_t tile = 0; tile * kTile<T> < pixels; ++tile) {
      for (int i = 0; i < kThreads; ++i) rgb24_read<T, kAligned>(job, frame, tile, i, words);
      for (int i = 0; i < kThreads; ++i) rgb24_write<T, kAligned>(job, frame, tile, i, words);
    }
  }
}

template <typename T, int kCount>
void yuv420(const PackJob& job) {
  for (int64_t frame = 0; frame < job.shape.frames; ++frame)
    for (uint32_t i = 0; i < yuv420_threads<kCount>(job.shape); ++i)
      yuv420_write<T, kCount>(job, frame, i);
}

template <typename T>
void rgb24_of(const PackJob& job) {
  aligned_tiles(job) ? rgb24<T, true>(job) : rgb24<T, false>(job);
}

template <typename T>
void yuv420_of(const PackJob& job) {
  aligned_rows<T>(job) ? yuv420<T, kLanes<T>>(job) : yuv420<T, 2>(job);
}

}  // namespace

void pack_rgb24_emulated(const PackJob& job) {
  if (job.type == Pixel::kFloat32) rgb24_of<float>(job);
  if (job.type == Pixel::kBFloat16) rgb24_of<BFloat16>(job);
  if (job.type == Pixel::kFloat16) rgb24_of<Float16>(job);
}

void pack_yuv420_emulated(const PackJob& job) {
  if (job.type == Pixel::kFloat32) yuv420_of<float>(job);
  if (job.type == Pixel::kBFloat16) yuv420_of<BFloat16>(job);
  if (job.type == Pixel::kFloat16) yuv420_of<Float16>(job);
}

}  // namespace streamt1
