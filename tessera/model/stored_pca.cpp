#include "tessera/model/stored_pca.h"

#include <torch/types.h>
#include <torch/utils.h>

#include "tessera/base/error.h"

namespace tessera {

void StoredPca::state(State& state, const std::string& name) {
  state.add(name + ".mean", mean_, Role::scoring);
  state.add(name + ".axes", axes_, Role::scoring);
  state.add(name + ".scale", scale_, Role::scoring);
}

Pca StoredPca::of(const Feature& feature, int64_t k, const Random& random) {
  const auto present = feature.present();
  if (!mean_.defined() && !axes_.defined() && !scale_.defined()) {
    const Pca made = fit_pca(feature.all(), k, random, present);
    mean_ = made.mean;
    axes_ = made.axes;
    scale_ = torch::full({1}, made.scale, torch::kFloat64);
    return made;
  }
  const int64_t n = n_axes(k, feature.width(), present.sum().item<int64_t>());
  const auto is = [](const torch::Tensor& x, torch::IntArrayRef sizes) {
    return x.defined() && x.scalar_type() == torch::kFloat64 && x.sizes() == sizes;
  };
  if (!is(mean_, {feature.width()}) || !is(axes_, {n, feature.width()}) || !is(scale_, {1})) {
    throw data_error(
        "stored PCA of '{}': wanted mean, axes and scale of {} axes, {} wide, found {}",
        feature.name, n, feature.width(),
        axes_.defined() ? fmt::format("[{}]", fmt::join(axes_.sizes(), ", "))
                        : std::string("no axes"));
  }
  return {mean_, axes_, scale_.item<double>(), {}};
}

}  // namespace tessera
