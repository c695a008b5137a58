#include "tessera/nn/vector_gan.h"

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "tessera/ops/by_type.h"
#include "tessera/ops/device.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/kernels.h"
#include "tessera/ops/losses.h"
#include "tessera/ops/parallel.h"
#include "tessera/ops/residual_norm.h"

namespace tessera {
namespace {

constexpr double kCodebookWeight = 0.1;
constexpr double kDiscriminatorWeight = 0.1;
constexpr double kDiscriminatorRate = 5e-5;
constexpr double kEps = 1e-5;
constexpr int64_t kParts = 2;  // of a batch, whatever the number of threads

GanBlock block(int64_t in, int64_t out, double gain, const Random& random,
               const std::string& name) {
  GanBlock b;
  b.weight = xavier_uniform(in, out, random.stream(name + ".weight")).set_requires_grad(true);
  b.bias = linear_default_bias(in, out, random.stream(name + ".bias")).set_requires_grad(true);
  b.gain = torch::full({out}, gain).set_requires_grad(true);
  b.shift = torch::zeros({out}).set_requires_grad(true);
  return b;
}

void name_blocks(std::vector<std::pair<std::string, torch::Tensor*>>& out,
                 std::vector<GanBlock>& blocks, const std::string& name) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string at = name + "." + std::to_string(i);
    out.emplace_back(at + ".weight", &blocks[i].weight);
    out.emplace_back(at + ".bias", &blocks[i].bias);
    out.emplace_back(at + ".gain", &blocks[i].gain);
    out.emplace_back(at + ".shift", &blocks[i].shift);
  }
}

/// The gradients of named tensors one after another, [part, elements]: a part's are written by the
/// thread that has its rows.
class PartGradients {
 public:
  PartGradients(int64_t n_parts, const std::vector<std::pair<std::string, torch::Tensor*>>& named) {
    int64_t n = 0;
    for (const auto& [name, tensor] : named) n += tensor->numel();
    flat_ = torch::empty({n_parts, n}, named.front().second->options().requires_grad(false));
  }

  /// Views of one part, taken in the order of the names.
  class Cursor {
   public:
    explicit Cursor(torch::Tensor flat) : flat_(std::move(flat)) {}
    torch::Tensor take(at::IntArrayRef sizes) {
      const int64_t n = c10::multiply_integers(sizes), begin = at_;
      at_ += n;
      return flat_.narrow(0, begin, n).view(sizes);
    }
    std::vector<ResidualNormGradients> take(const std::vector<GanBlock>& blocks) {
      std::vector<ResidualNormGradients> out;
      for (const auto& b : blocks) {
        out.push_back({take(b.weight.sizes()), take({3, b.bias.size(0)})});
      }
      return out;
    }

   private:
    torch::Tensor flat_;
    int64_t at_ = 0;
  };
  Cursor part(int64_t part) const { return Cursor(flat_.select(0, part)); }

  /// A step of each tensor by the sum of its parts.
  void take_step(DenseAdam& adam, const std::vector<std::pair<std::string, torch::Tensor*>>& named,
                 const AdamOptions& options) {
    Cursor sum(flat_.sum(0));
    for (const auto& [name, tensor] : named) {
      adam.step(name, *tensor, sum.take(tensor->sizes()), options);
    }
  }

 private:
  torch::Tensor flat_;
};

std::vector<ResidualNorm> forward(const std::vector<GanBlock>& blocks, torch::Tensor x) {
  std::vector<ResidualNorm> out;
  for (const auto& b : blocks) {
    out.push_back(residual_norm_forward(x, b.weight, b.bias, b.gain, b.shift, kEps));
    x = out.back().out;
  }
  return out;
}

/// The gradient of what entered the blocks, of its last `width` columns (0: none at all). Those of
/// the parameters go to `to`, if there is one for each block.
torch::Tensor backward(const std::vector<GanBlock>& blocks, const std::vector<ResidualNorm>& kept,
                       torch::Tensor upstream, const std::vector<ResidualNormGradients>& to,
                       int64_t width) {
  for (size_t k = blocks.size(); k-- > 0;) {
    const auto& weight = blocks[k].weight;
    const auto dy = residual_norm_backward(kept[k], blocks[k].gain, upstream,
                                           to.empty() ? ResidualNormGradients() : to[k]);
    const int64_t rows = k > 0 ? weight.size(0) : width;
    if (rows == 0) return {};
    upstream = at::mm(dy, weight.narrow(0, weight.size(0) - rows, rows).t());
  }
  return upstream;
}

}  // namespace

torch::Tensor GanBlock::operator()(const torch::Tensor& x) const {
  return residual_norm(x, weight, bias, gain, shift, kEps);
}

torch::Tensor nearest_codes_composed(const torch::Tensor& slots, const torch::Tensor& codes) {
  return ((codes * codes).sum(1) / 2 - slots.matmul(codes.t())).argmin(1);
}

torch::Tensor nearest_codes(const torch::Tensor& slots, const torch::Tensor& codes) {
  const torch::NoGradGuard no_grad;
  if (composed(slots)) return nearest_codes_composed(slots, codes);
  const int64_t n = slots.size(0), n_codes = codes.size(0);
  const auto out = torch::empty({n}, torch::kInt64);
  const auto half = (codes * codes).sum(1) / 2;
  constexpr int64_t kRows = 512;
  for (int64_t begin = 0; begin < n; begin += kRows) {
    const int64_t rows = std::min(kRows, n - begin);
    // |z - c|^2 / 2 without |z|^2 / 2.
    const auto distance = (half - slots.narrow(0, begin, rows).matmul(codes.t())).contiguous();
    int64_t* to = out.mutable_data_ptr<int64_t>() + begin;
    by_type(distance, [&](auto type) {
      using T = decltype(type);
      const T* from = distance.const_data_ptr<T>();
      parallel_for(0, rows, 64, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
          to[r] = kernels::smallest(from + r * n_codes, n_codes);
        }
      });
    });
  }
  return out;
}

torch::Tensor code_loss(const Coded& coded) {
  return mean_square(coded.z, coded.z_q_fixed) +
         kCodebookWeight * mean_square(coded.z_q, coded.z_fixed);
}

torch::Tensor code_loss(const torch::Tensor& z, const torch::Tensor& z_q) {
  return code_loss({z, z_q, z.detach(), z_q.detach()});
}

double perplexity(const torch::Tensor& code_of_slot, int64_t n_codes) {
  if (code_of_slot.numel() == 0) return 0;
  const auto share = torch::bincount(code_of_slot, {}, n_codes).to(torch::kFloat64) /
                     static_cast<double>(code_of_slot.numel());
  return std::exp(-(share * share.clamp_min(1e-300).log()).sum().item<double>());
}

torch::Tensor discriminator_loss(const torch::Tensor& real, const torch::Tensor& fake) {
  return kDiscriminatorWeight * (torch::softplus(-real).mean() + torch::softplus(fake).mean());
}

torch::Tensor adversarial_loss(const torch::Tensor& fake) { return torch::softplus(-fake).mean(); }

VectorGan::VectorGan(const VectorGanOptions& options, const Random& random) : options_(options) {
  const auto stream = [&](const std::string& name) { return random.stream("gan." + name); };
  prompts_ =
      normal(options.n_directions, options.prompt, 0, 1, stream("prompts")).set_requires_grad(true);
  codes_ =
      xavier_normal(options.n_codes, options.code_width, stream("codes")).set_requires_grad(true);
  const auto chain = [&](std::vector<GanBlock>& blocks, int64_t in,
                         const std::vector<int64_t>& sizes, const std::string& name) {
    for (const int64_t out : sizes) {
      blocks.push_back(
          block(in, out, options.ln_gain, random, "gan." + name + std::to_string(blocks.size())));
      in = out;
    }
    return in;
  };
  const int64_t z = chain(encoder_, options.width + options.prompt, options.encoder, "encoder");
  TORCH_CHECK(z % options.code_width == 0, "the encoder ends in ", z,
              " columns, no multiple of the code width ", options.code_width);
  std::vector<int64_t> out = options.decoder;
  out.push_back(options.width);
  chain(decoder_, z, out, "decoder");
  const int64_t last = chain(judge_, options.width, options.discriminator, "discriminator");
  logit_weight_ = linear_default_weight(1, last, stream("logit.weight"))
                      .t()
                      .contiguous()
                      .set_requires_grad(true);
  logit_bias_ = linear_default_bias(last, 1, stream("logit.bias")).set_requires_grad(true);
  best_.resize(network().size());
}

torch::Tensor VectorGan::encode(const torch::Tensor& source, const torch::Tensor& direction) const {
  auto x = torch::cat({source, gather_rows(prompts_, direction)}, 1);
  for (const auto& b : encoder_) x = b(x);
  return x;
}

torch::Tensor VectorGan::decode_rows(const torch::Tensor& z) const {
  auto x = z;
  for (const auto& b : decoder_) x = b(x);
  return x;
}

torch::Tensor VectorGan::judge(const torch::Tensor& rows, bool frozen) const {
  auto x = rows;
  for (const auto& b : judge_) {
    x = frozen ? GanBlock{b.weight.detach(), b.bias.detach(), b.gain.detach(), b.shift.detach()}(x)
               : b(x);
  }
  return frozen ? torch::addmm(logit_bias_.detach(), x, logit_weight_.detach())
                : torch::addmm(logit_bias_, x, logit_weight_);
}

torch::Tensor VectorGan::codes_of(const torch::Tensor& source,
                                  const torch::Tensor& direction) const {
  const torch::NoGradGuard no_grad;
  return nearest_codes(encode(source, direction).reshape({-1, options_.code_width}), codes_);
}

torch::Tensor VectorGan::rewrite(const torch::Tensor& source,
                                 const torch::Tensor& direction) const {
  const torch::NoGradGuard no_grad;
  const auto z = encode(source, direction);
  const auto index = nearest_codes(z.reshape({-1, options_.code_width}), codes_);
  return decode_rows(codes_.index_select(0, index).view_as(z));
}

Coded VectorGan::code(const torch::Tensor& source, const torch::Tensor& direction) const {
  const auto z = encode(source, direction);
  const auto slots = z.detach().reshape({-1, options_.code_width});
  const auto z_q = gather_rows(codes_, nearest_codes(slots, codes_.detach())).view_as(z);
  return {z, z_q, z.detach(), z_q.detach()};
}

torch::Tensor VectorGan::decode(const Coded& coded) const {
  return decode_rows(coded.z + (coded.z_q_fixed - coded.z_fixed));
}

torch::Tensor VectorGan::loss_of_discriminator(const torch::Tensor& target,
                                               const torch::Tensor& e_hat) const {
  const auto logits = judge(torch::cat({target, e_hat.detach()}), false).split(target.size(0));
  return discriminator_loss(logits[0], logits[1]);
}

VectorGan::NetworkLoss VectorGan::loss_of_network(const Coded& coded, const torch::Tensor& e_hat,
                                                  const torch::Tensor& target) const {
  const auto distance = mean_distance(e_hat, target);
  auto total = distance + code_loss(coded);
  if (options_.adv > 0) total = total + options_.adv * adversarial_loss(judge(e_hat, true));
  return {total, distance};
}

double VectorGan::step_composed(const torch::Tensor& source, const torch::Tensor& target,
                                const torch::Tensor& direction) {
  const torch::AutoGradMode with_gradients(true);
  const auto move = [](const torch::Tensor& loss, const Named& named, DenseAdam& adam,
                       const AdamOptions& options) {
    std::vector<torch::Tensor> leaves;
    for (const auto& [name, tensor] : named) leaves.push_back(*tensor);
    const auto gradients = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/true, false,
                                                 /*allow_unused=*/true);
    for (size_t i = 0; i < named.size(); ++i) {
      const auto& g = gradients[i];
      adam.step(named[i].first, *named[i].second,
                g.defined() ? g.contiguous() : torch::zeros_like(leaves[i]), options);
    }
  };
  const Coded coded = code(source, direction);
  const auto e_hat = decode(coded);
  if (options_.adv > 0) {
    move(loss_of_discriminator(target, e_hat), discriminator(), discriminator_adam_,
         discriminator_options());
  }
  const auto loss = loss_of_network(coded, e_hat, target);
  move(loss.total, network(), adam_, network_options());
  return loss.distance.item<double>();
}

AdamOptions VectorGan::discriminator_options() const {
  AdamOptions options;
  options.beta1 = 0.5;
  options.beta2 = 0.9;
  options.learning_rate = [](int64_t) { return kDiscriminatorRate; };
  return options;
}

AdamOptions VectorGan::network_options() const {
  AdamOptions options = discriminator_options();
  options.learning_rate = [rate = options_.learning_rate](int64_t) { return rate; };
  options.weight_decay = 0.01;
  options.decay = AdamOptions::Decay::decoupled;
  return options;
}

double VectorGan::step(const torch::Tensor& source, const torch::Tensor& target,
                       const torch::Tensor& direction) {
  if (composed(source)) return step_composed(source, target, direction);
  const torch::NoGradGuard no_grad;
  const int64_t n = source.size(0), width = options_.width;
  const auto per_row = 1 / static_cast<double>(std::max<int64_t>(1, n));
  struct Part {
    torch::Tensor target, direction, z, codes, z_q, e_hat;
    std::vector<ResidualNorm> encoder, decoder;
    double distance = 0;
  };
  std::vector<Part> parts(kParts);
  const auto in_parts = [&](const std::function<void(int64_t, Part&)>& body) {
    parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
      const torch::NoGradGuard in_this_thread;
      for (int64_t k = begin; k < end; ++k) body(k, parts[static_cast<size_t>(k)]);
    });
  };

  PartGradients of_judge(kParts, discriminator()), of_network(kParts, network());
  in_parts([&](int64_t k, Part& part) {
    const int64_t first = k * n / kParts, rows = (k + 1) * n / kParts - first;
    part.target = target.narrow(0, first, rows);
    part.direction = direction.narrow(0, first, rows);
    part.encoder = forward(
        encoder_,
        torch::cat({source.narrow(0, first, rows), prompts_.index_select(0, part.direction)}, 1));
    part.z = part.encoder.back().out;
    part.codes = nearest_codes(part.z.view({-1, options_.code_width}), codes_);
    part.z_q = codes_.index_select(0, part.codes).view_as(part.z);
    part.decoder = forward(decoder_, part.z + (part.z_q - part.z));
    part.e_hat = part.decoder.back().out;
    if (options_.adv <= 0) return;

    const auto judged = forward(judge_, torch::cat({part.target, part.e_hat}));
    const auto& last = judged.back().out;
    const auto logits = torch::addmm(logit_bias_, last, logit_weight_);
    // softplus(-x) falls by sigmoid(-x), softplus(x) rises by sigmoid(x).
    const auto slope = torch::cat({logits.narrow(0, 0, rows).neg().sigmoid().neg_(),
                                   logits.narrow(0, rows, rows).sigmoid()})
                           .mul_(kDiscriminatorWeight * per_row);
    auto to = of_judge.part(k);
    backward(judge_, judged, slope.matmul(logit_weight_.t()), to.take(judge_), 0);
    to.take(logit_weight_.sizes()).copy_(last.t().matmul(slope));
    to.take(logit_bias_.sizes()).copy_(slope.sum(0));
  });

  if (options_.adv > 0) {
    of_judge.take_step(discriminator_adam_, discriminator(), discriminator_options());
  }

  in_parts([&](int64_t k, Part& part) {
    const auto away = part.e_hat - part.target;
    part.distance = away.abs().sum(torch::kFloat64).item<double>();
    auto g = away.sign_().mul_(per_row / static_cast<double>(width));
    if (options_.adv > 0) {
      const auto judged = forward(judge_, part.e_hat);
      const auto slope = torch::addmm(logit_bias_, judged.back().out, logit_weight_)
                             .neg_()
                             .sigmoid_()
                             .mul_(-options_.adv * per_row);
      g += backward(judge_, judged, slope.matmul(logit_weight_.t()), {}, width);
    }
    auto to = of_network.part(k);
    const auto prompts = to.take(prompts_.sizes()).zero_(), codes = to.take(codes_.sizes()).zero_();
    const auto encoder = to.take(encoder_), decoder = to.take(decoder_);
    auto dz = backward(decoder_, part.decoder, g, decoder, part.z.size(1));
    const auto apart = (part.z - part.z_q).mul_(2 * per_row / static_cast<double>(part.z.size(1)));
    dz += apart;
    codes.index_add_(0, part.codes, apart.view({-1, options_.code_width}), -kCodebookWeight);
    prompts.index_add_(0, part.direction,
                       backward(encoder_, part.encoder, dz, encoder, options_.prompt));
  });
  of_network.take_step(adam_, network(), network_options());
  double distance = 0;
  for (const Part& part : parts) distance += part.distance;
  return distance * per_row / static_cast<double>(width);
}

void VectorGan::remember_best() {
  const auto now = network();
  for (size_t i = 0; i < now.size(); ++i) best_[i] = now[i].second->detach().clone();
}

void VectorGan::restore_best() {
  const torch::NoGradGuard no_grad;
  const auto now = network();
  for (size_t i = 0; i < now.size(); ++i) {
    if (best_[i].defined()) now[i].second->copy_(best_[i]);
  }
}

VectorGan::Named VectorGan::network() {
  Named out = {{"gan.prompts", &prompts_}, {"gan.codes", &codes_}};
  name_blocks(out, encoder_, "gan.encoder");
  name_blocks(out, decoder_, "gan.decoder");
  return out;
}

VectorGan::Named VectorGan::discriminator() {
  Named out;
  name_blocks(out, judge_, "gan.discriminator");
  out.emplace_back("gan.discriminator.logit.weight", &logit_weight_);
  out.emplace_back("gan.discriminator.logit.bias", &logit_bias_);
  return out;
}

VectorGan::Named VectorGan::tensors() {
  Named out = network();
  const size_t n = out.size();
  for (auto& entry : discriminator()) out.push_back(entry);
  for (size_t i = 0; i < n; ++i) out.emplace_back("best." + out[i].first, &best_[i]);
  return out;
}

int64_t VectorGan::n_parameters() const {
  int64_t n = 0;
  for (const auto& [name, tensor] : const_cast<VectorGan*>(this)->network()) n += tensor->numel();
  return n;
}

int64_t VectorGan::n_discriminator_parameters() const {
  int64_t n = 0;
  for (const auto& [name, tensor] : const_cast<VectorGan*>(this)->discriminator()) {
    n += tensor->numel();
  }
  return n;
}

}  // namespace tessera
