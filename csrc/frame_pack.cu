#include <cuda_runtime.h>

#include "streamt1/frame_pack.cuh"

namespace streamt1 {
namespace {

using namespace pack;

// Blocks of one frame lie side by side in the grid. Divisions of 32 bits: those of 64 are slow.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) rgb24_kernel(PackJob job, uint32_t tiles) {
  __shared__ alignas(kAccess) uint32_t shared[3 * kTile<T> / 4];
  const int64_t frame = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  rgb24_read<T, kAligned>(job, frame, tile, threadIdx.x, shared);
  __syncthreads();
  rgb24_write<T, kAligned>(job, frame, tile, threadIdx.x, shared);
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) yuv420_kernel(PackJob job, uint32_t blocks) {
  const uint32_t thread = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (thread < yuv420_threads<kCount>(job.shape))
    yuv420_write<T, kCount>(job, blockIdx.x / blocks, thread);
}

template <typename T>
void launch_rgb24(const PackJob& job, cudaStream_t stream) {
  const int64_t pixels = job.shape.height * job.shape.width;
  const auto tiles = static_cast<uint32_t>((pixels + kTile<T> - 1) / kTile<T>);
  const auto grid = static_cast<uint32_t>(tiles * job.shape.frames);
  if (aligned_tiles(job))
    rgb24_kernel<T, true><<<grid, kThreads, 0, stream>>>(job, tiles);
  else
    rgb24_kernel<T, false><<<grid, kThreads, 0, stream>>>(job, tiles);
}

template <typename T, int kCount>
void launch_yuv420_by(const PackJob& job, cudaStream_t stream) {
  const uint32_t blocks = (yuv420_threads<kCount>(job.shape) + kThreads - 1) / kThreads;
  const auto grid = static_cast<uint32_t>(blocks * job.shape.frames);
  yuv420_kernel<T, kCount><<<grid, kThreads, 0, stream>>>(job, blocks);
}

template <typename T>
void launch_yuv420(const PackJob& job, cudaStream_t stream) {
  if (aligned_rows<T>(job))
    launch_yuv420_by<T, kLanes<T>>(job, stream);
  else
    launch_yuv420_by<T, 2>(job, stream);
}

const char* failure() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* pack_rgb24_cuda(const PackJob& job, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (job.type == Pixel::kFloat32) launch_rgb24<float>(job, queue);
  if (job.type == Pixel::kBFloat16) launch_rgb24<BFloat16>(job, queue);
  if (job.type == Pixel::kFloat16) launch_rgb24<Float16>(job, queue);
  return failure();
}

const char* pack_yuv420_cuda(const PackJob& job, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (job.type == Pixel::kFloat32) launch_yuv420<float>(job, queue);
  if (job.type == Pixel::kBFloat16) launch_yuv420<BFloat16>(job, queue);
  if (job.type == Pixel::kFloat16) launch_yuv420<Float16>(job, queue);
  return failure();
}

}  // namespace streamt1
