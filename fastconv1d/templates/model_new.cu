// The kernels of an exported ModelNew, one tile per mode: `export.py` writes tiles.h. What such a
// kernel's shared memory cannot hold runs on the plain kernel.
#include "direct.cuh"
#include "tiles.h"

namespace fastconv1d {

template <class Function>
int64_t with_kernel(const ConvArgs& args, const Function& function) {
  switch (args.mode) {
    case kTf32:
      return function(Tf32Kernel{});
    case kIeee:
      return function(IeeeKernel{});
    case kBf16:
      return function(Bf16Kernel{});
    default:
      return function(Fp16Kernel{});
  }
}

}  // namespace fastconv1d

int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {
  return fastconv1d::with_kernel(*args, [&](auto kernel) { return kernel.workspace(0, *args); });
}

int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) {
  const int64_t error =
      fastconv1d::with_kernel(*args, [&](auto kernel) { return kernel.launch(0, *args, stream); });
  if (error != cudaErrorInvalidValue) return static_cast<int>(error);
  return fastconv1d::direct_launch(args->mode, *args, stream);
}
