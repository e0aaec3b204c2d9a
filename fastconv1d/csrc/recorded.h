// What autograd records of a convolution, without Python: `_Convolution` of ops.py is the same for what this
// leaves out, forward derivatives and functorch's transforms.
#pragma once
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

namespace {

using ConvolutionOperator = at::Tensor(const at::Tensor&, const at::Tensor&,
                                       const std::optional<at::Tensor>&, c10::SymIntArrayRef,
                                       c10::SymIntArrayRef, c10::SymIntArrayRef, bool,
                                       c10::SymIntArrayRef, c10::SymInt, c10::string_view);
using GradWeightOperator = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef, bool, c10::SymIntArrayRef,
    c10::SymIntArrayRef, c10::SymIntArrayRef, bool, c10::SymIntArrayRef, c10::SymInt,
    c10::string_view);
using BackwardOperator = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, at::OptionalSymIntArrayRef,
    c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef, bool, c10::SymIntArrayRef,
    c10::SymInt, std::array<bool, 3>, c10::string_view);

template <class Signature>
auto operator_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
const auto& convolution_operator() {
  static const auto op = operator_of<ConvolutionOperator>("fastconv1d::convolution");
  return op;
}
const auto& grad_weight_operator() {
  static const auto op = operator_of<GradWeightOperator>("fastconv1d::grad_weight");
  return op;
}
const auto& backward_operator() {
  static const auto op = operator_of<BackwardOperator>("fastconv1d::convolution_backward");
  return op;
}

// All but the tensors.
struct RecordedGeometry {
  int64_t stride, padding, dilation, transposed, output_padding, groups;
  c10::List<int64_t> list() const {
    return c10::List<int64_t>({stride, padding, dilation, transposed, output_padding, groups});
  }
  static RecordedGeometry of(const c10::List<int64_t>& list) {
    return {list[0], list[1], list[2], list[3], list[4], list[5]};
  }
};

class RecordedConvolution : public torch::autograd::Function<RecordedConvolution> {
  using Context = torch::autograd::AutogradContext;

  static at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias, const RecordedGeometry& g,
                             bool transposed, const c10::SymInt& output_padding,
                             const std::string& algorithm) {
    return convolution_operator().call(input, weight, bias, {g.stride}, {g.padding}, {g.dilation},
                                       transposed, {output_padding}, g.groups, algorithm);
  }

  // The other convolution with the same weight, of which the input had `length` positions.
  static at::Tensor grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                               const c10::SymInt& length, const RecordedGeometry& g,
                               const std::string& algorithm) {
    c10::SymInt missing = 0;
    if (!g.transposed) {
      const c10::SymInt reach = (weight.sym_size(2) - 1) * g.dilation + 1;
      missing = length - ((grad_output.sym_size(2) - 1) * g.stride - 2 * g.padding + reach);
    }
    const at::Tensor grad =
        convolve(grad_output, weight, std::nullopt, g, !g.transposed, missing, algorithm);
    // There are more where output_padding is a stride or more.
    return grad.sym_size(2) == length ? grad : grad.narrow_symint(2, 0, length);
  }

 public:
  static at::Tensor forward(Context* context, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const RecordedGeometry& g,
                            const std::string& algorithm) {
    context->save_for_backward({weight.requires_grad() ? input : at::Tensor(),
                                input.requires_grad() ? weight : at::Tensor()});
    context->saved_data["geometry"] = g.list();
    context->saved_data["algorithm"] = algorithm;
    context->saved_data["length"] = input.sym_size(2);
    context->saved_data["weight_sizes"] = weight.sym_sizes().vec();
    context->saved_data["bias"] = bias.has_value() && bias->defined();
    const at::AutoDispatchBelowADInplaceOrView guard;
    return convolve(input, weight, bias, g, g.transposed, g.output_padding, algorithm);
  }

  static torch::autograd::variable_list backward(Context* context,
                                                 const torch::autograd::variable_list& grads) {
    torch::autograd::variable_list result(5);
    const at::Tensor& grad_output = grads[0];
    if (!grad_output.defined()) return result;
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto g = RecordedGeometry::of(data["geometry"].toIntList());
    std::string algorithm = data["algorithm"].toStringRef();
    // Families that run every convolution; other ones have no say in the gradients.
    if (algorithm != "aten" && algorithm != "direct") algorithm.clear();
    const bool for_bias = data["bias"].toBool() && context->needs_input_grad(2);
    if (context->needs_input_grad(0) && context->needs_input_grad(1)) {
      std::tie(result[0], result[1], result[2]) = backward_operator().call(
          grad_output, saved[0], saved[1], std::vector<c10::SymInt>{grad_output.sym_size(1)},
          {g.stride}, {g.padding}, {g.dilation}, g.transposed, {g.output_padding}, g.groups,
          {true, true, for_bias}, algorithm);
      return result;
    }
    if (context->needs_input_grad(0))
      result[0] = grad_input(grad_output, saved[1], data["length"].toSymInt(), g, algorithm);
    if (context->needs_input_grad(1)) {
      const auto sizes = data["weight_sizes"].toSymIntVector();
      std::tie(result[1], result[2]) = grad_weight_operator().call(
          grad_output, saved[0], sizes, for_bias, {g.stride}, {g.padding}, {g.dilation},
          g.transposed, {g.output_padding}, g.groups, algorithm);
    } else if (for_bias) {
      result[2] = grad_output.sum(c10::IntArrayRef({0, 2}));
    }
    if (!for_bias) result[2] = at::Tensor();
    return result;
  }
};

// The geometry, if it is all numbers and autograd alone looks.
inline std::optional<RecordedGeometry> recorded_geometry(
    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
    bool transposed, c10::SymIntArrayRef output_padding, const c10::SymInt& groups) {
  const auto number_of = [](c10::SymIntArrayRef sizes) {
    return sizes.size() == 1 ? sizes[0].maybe_as_int() : std::nullopt;
  };
  const auto s = number_of(stride), p = number_of(padding), d = number_of(dilation),
             o = number_of(output_padding), g = groups.maybe_as_int();
  if (!s || !p || !d || !o || !g || at::functorch::functorchTLSAccessor()) return std::nullopt;
  return RecordedGeometry{*s, *p, *d, transposed, *o, *g};
}

}  // namespace
