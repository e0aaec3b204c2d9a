// The operator of an exported ModelNew: checks its arguments, makes the output, and hands both to
// the kernels on the current stream.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "args.h"

namespace {

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, int64_t stride, int64_t padding,
                       int64_t dilation, bool transposed, int64_t output_padding, int64_t groups,
                       bool allow_tf32) {
  TORCH_CHECK(input.dim() == 3, "input has ", input.dim(), " dimensions, expected 3");
  TORCH_CHECK(weight.dim() == 3, "weight has ", weight.dim(), " dimensions, expected 3");
  TORCH_CHECK(stride > 0 && dilation > 0 && groups > 0 && padding >= 0, "stride is ", stride,
              ", dilation ", dilation, ", groups ", groups, ", padding ", padding,
              ", expected positive ones and padding of at least 0");
  TORCH_CHECK(output_padding >= 0 && output_padding < std::max(stride, dilation) &&
                  (transposed || output_padding == 0),
              "output_padding is ", output_padding, ", expected less than stride=", stride,
              " or dilation=", dilation, ", and 0 unless transposed");
  const int64_t channels_in = transposed ? weight.size(0) : weight.size(1) * groups;
  const int64_t channels_out = transposed ? weight.size(1) * groups : weight.size(0);
  TORCH_CHECK(input.size(1) == channels_in, "input has ", input.size(1), " channels, expected ",
              channels_in);
  TORCH_CHECK(weight.size(0) % groups == 0, "weight has shape ", weight.sizes(),
              ", expected a first dimension that groups=", groups, " divides");
  TORCH_CHECK(weight.device() == input.device(), "weight is on ", weight.device(),
              ", expected input's device ", input.device());
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight is ", weight.scalar_type(),
              ", expected input's dtype ", input.scalar_type());
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels_out && bias->is_contiguous(),
                "bias has shape ", bias->sizes(), ", expected (", channels_out, ")");
    TORCH_CHECK(bias->device() == input.device() && bias->scalar_type() == input.scalar_type(),
                "bias is ", bias->scalar_type(), " on ", bias->device(), ", expected ",
                input.scalar_type(), " on ", input.device());
  }
  int64_t mode = allow_tf32 ? fastconv1d::kTf32 : fastconv1d::kIeee;
  if (input.scalar_type() == at::kBFloat16) mode = fastconv1d::kBf16;
  if (input.scalar_type() == at::kHalf) mode = fastconv1d::kFp16;
  TORCH_CHECK(mode > fastconv1d::kIeee || input.scalar_type() == at::kFloat, "input is ",
              input.scalar_type(), ", expected float32, bfloat16 or float16");
  const int64_t length = input.size(2), reach = dilation * (weight.size(2) - 1) + 1;
  int64_t length_out = (length - 1) * stride - 2 * padding + reach + output_padding;
  if (!transposed) {
    const int64_t room = length + 2 * padding - reach;
    length_out = room >= 0 ? room / stride + 1 : 0;
  }
  TORCH_CHECK(length_out > 0, "input has length ", length, ", expected a longer one with padding ",
              padding, " and a kernel's reach of ", reach);

  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = at::empty({input.size(0), channels_out, length_out}, input.options());
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
  args.channels_out = channels_out;
  args.length = x.size(2);
  args.length_out = length_out;
  args.kernel_size = w.size(2);
  args.stride = stride;
  args.padding = padding;
  args.dilation = dilation;
  args.groups = groups;
  args.transposed = transposed;
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
#define CONVOLUTION_LIBRARY(name, library) TORCH_LIBRARY(name, library)
CONVOLUTION_LIBRARY(TORCH_EXTENSION_NAME, library) {
  library.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, int stride, int padding, "
      "int dilation, bool transposed, int output_padding, int groups, bool allow_tf32) -> Tensor");
  library.impl("convolution", c10::DispatchKey::CUDA, TORCH_FN(convolution));
}
