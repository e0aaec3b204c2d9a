// The operator of an exported ModelNew: checks its arguments, makes the output, and hands both to
// the kernels on the current stream.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "args.h"

namespace {

at::Tensor conv1d(const at::Tensor& input, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias, int64_t stride, int64_t padding,
                  int64_t dilation, int64_t groups, bool allow_tf32) {
  TORCH_CHECK(input.dim() == 3, "input has ", input.dim(), " dimensions, expected 3");
  TORCH_CHECK(weight.dim() == 3, "weight has ", weight.dim(), " dimensions, expected 3");
  TORCH_CHECK(stride > 0 && dilation > 0 && groups > 0 && padding >= 0, "stride is ", stride,
              ", dilation ", dilation, ", groups ", groups, ", padding ", padding,
              ", expected positive ones and padding of at least 0");
  TORCH_CHECK(input.size(1) == weight.size(1) * groups, "input has ", input.size(1),
              " channels, expected ", weight.size(1) * groups);
  TORCH_CHECK(weight.size(0) % groups == 0, "weight has ", weight.size(0),
              " output channels, expected a multiple of groups=", groups);
  TORCH_CHECK(weight.device() == input.device(), "weight is on ", weight.device(),
              ", expected input's device ", input.device());
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight is ", weight.scalar_type(),
              ", expected input's dtype ", input.scalar_type());
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->is_contiguous(),
                "bias has shape ", bias->sizes(), ", expected (", weight.size(0), ")");
    TORCH_CHECK(bias->device() == input.device() && bias->scalar_type() == input.scalar_type(),
                "bias is ", bias->scalar_type(), " on ", bias->device(), ", expected ",
                input.scalar_type(), " on ", input.device());
  }
  int64_t mode = allow_tf32 ? fastconv1d::kTf32 : fastconv1d::kIeee;
  if (input.scalar_type() == at::kBFloat16) mode = fastconv1d::kBf16;
  if (input.scalar_type() == at::kHalf) mode = fastconv1d::kFp16;
  TORCH_CHECK(mode > fastconv1d::kIeee || input.scalar_type() == at::kFloat, "input is ",
              input.scalar_type(), ", expected float32, bfloat16 or float16");
  const int64_t reach = dilation * (weight.size(2) - 1) + 1;
  const int64_t room = input.size(2) + 2 * padding - reach;
  TORCH_CHECK(room >= 0, "input has length ", input.size(2), ", with padding ",
              input.size(2) + 2 * padding, ", expected at least the kernel's reach ", reach);

  const c10::cuda::CUDAGuard guard(input.device());
  const int64_t length_out = room / stride + 1;
  at::Tensor output = at::empty({input.size(0), weight.size(0), length_out}, input.options());
  if (output.numel() == 0) return output;
  const at::Tensor x = input.stride(2) == 1 ? input : input.contiguous();
  const at::Tensor w = weight.contiguous();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        input.device().index()));
  fastconv1d::ConvArgs args{};
  args.input = x.const_data_ptr();
  args.weight = w.const_data_ptr();
  args.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
  args.output = output.mutable_data_ptr();
  args.batch = x.size(0);
  args.channels_in = x.size(1);
  args.channels_out = w.size(0);
  args.length = x.size(2);
  args.length_out = length_out;
  args.kernel_size = w.size(2);
  args.stride = stride;
  args.padding = padding;
  args.dilation = dilation;
  args.groups = groups;
  args.input_batch_stride = x.stride(0);
  args.input_channel_stride = x.stride(1);
  args.mode = mode;
  args.multiprocessors = multiprocessors;
  const at::Tensor workspace =
      at::empty({fastconv1d_workspace(0, &args)}, input.options().dtype(at::kByte));
  args.workspace = workspace.mutable_data_ptr();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(static_cast<cudaError_t>(fastconv1d_launch(0, &args, stream.stream())));
  return output;
}

}  // namespace

// The library's name is a macro, which TORCH_LIBRARY alone would not expand.
#define CONV1D_LIBRARY(name, library) TORCH_LIBRARY(name, library)
CONV1D_LIBRARY(TORCH_EXTENSION_NAME, library) {
  library.def(
      "conv1d(Tensor input, Tensor weight, Tensor? bias, int stride, int padding, int dilation, "
      "int groups, bool allow_tf32) -> Tensor");
  library.impl("conv1d", c10::DispatchKey::CUDA, TORCH_FN(conv1d));
}
