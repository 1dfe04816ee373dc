#include <cuda_runtime.h>

#include "streamt1/ema_merge.cuh"

namespace streamt1 {
namespace {

constexpr unsigned kThreads = 256;

template <typename T, Storage kStorage>
__global__ void __launch_bounds__(kThreads)
    ema_merge_kernel(const __grid_constant__ EmaMerge m, uint32_t vectors) {
  const uint32_t vector = blockIdx.x * kThreads + threadIdx.x;
  if (vector < vectors) ema::merge_vector<T, kStorage>(m, blockIdx.y, vector);
}

}  // namespace

const char* ema_merge_cuda(const EmaMerge& m, void* stream) {
  ema::with_form(m, [&](auto form) {
    using Form = decltype(form);
    using T = typename Form::Type;
    const auto vectors = static_cast<uint32_t>(m.elements / ema::Vector<T>::kSize);
    const dim3 grid((vectors + kThreads - 1) / kThreads, static_cast<unsigned>(m.planes));
    ema_merge_kernel<T, Form::storage>
        <<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(m, vectors);
  });
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace streamt1
