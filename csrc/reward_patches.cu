#include <cuda_runtime.h>

#include "streamt1/reward_patches.cuh"

namespace streamt1 {
namespace {

using namespace patches;

template <typename T, int kCount, typename U>
__global__ void __launch_bounds__(kThreads) patches_kernel(PatchJob job, Tile tile) {
  extern __shared__ __align__(kAccess) uint8_t shared[];
  const Place at = place_block<kCount>(job, tile, blockIdx.x);
  const int thread = threadIdx.x, slots = job.video ? kPatchFrames : 1;
  for (int slot = 0; slot < slots; ++slot) {
    // What the last turn shrank is not overwritten before the barrier after this.
    read_tile<T, kCount>(job, tile, at, slot, thread, shared);
    __syncthreads();
    narrow_tile(job, tile, at, thread, shared);
    __syncthreads();
    shrink_tile(job, tile, at, slot, thread, shared);
  }
  __syncthreads();
  write_tile<U>(job, tile, at, thread, shared);
}

template <typename T, int kCount, typename U>
cudaError_t launch(const PatchJob& job, cudaStream_t stream) {
  const Tile tile = tile_of(job);
  const auto bytes = static_cast<int>(bytes_of(tile));
  if (bytes > kEveryGpu) {
    const cudaError_t refused = cudaFuncSetAttribute(
        patches_kernel<T, kCount, U>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (refused != cudaSuccess) return refused;
  }
  patches_kernel<T, kCount, U><<<blocks_of(job, tile), kThreads, bytes, stream>>>(job, tile);
  return cudaGetLastError();
}

template <typename T, int kCount>
cudaError_t launch_into(const PatchJob& job, cudaStream_t stream) {
  if (job.out_type == Pixel::kFloat32) return launch<T, kCount, float>(job, stream);
  if (job.out_type == Pixel::kBFloat16) return launch<T, kCount, BFloat16>(job, stream);
  return launch<T, kCount, Float16>(job, stream);
}

template <typename T>
cudaError_t launch_from(const PatchJob& job, cudaStream_t stream) {
  constexpr int kCount = kAccess / static_cast<int>(sizeof(T));
  return aligned_rows<T>(job) ? launch_into<T, kCount>(job, stream)
                              : launch_into<T, 1>(job, stream);
}

}  // namespace

const char* reward_patches_cuda(const PatchJob& job, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaSuccess;
  if (job.type == Pixel::kFloat32) error = launch_from<float>(job, queue);
  if (job.type == Pixel::kBFloat16) error = launch_from<BFloat16>(job, queue);
  if (job.type == Pixel::kFloat16) error = launch_from<Float16>(job, queue);
  if (job.type == Pixel::kUInt8) error = launch_from<uint8_t>(job, queue);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace streamt1
