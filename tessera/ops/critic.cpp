#include "tessera/ops/critic.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include <algorithm>

namespace tessera {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr double kNormEps = 1e-5;
constexpr double kFlat = 1e-12;  // a slope below has no direction

double scale_of(const CriticForm& form) {
  return form.output == CriticForm::Output::sigmoid100 ? 100 : 1;
}

torch::Tensor score_of(const CriticForm& form, const torch::Tensor& logit) {
  if (form.output == CriticForm::Output::linear) return logit;
  return torch::sigmoid(logit) * scale_of(form);
}

/// First and second derivative of the score by the logit.
std::pair<torch::Tensor, torch::Tensor> derivatives(const CriticForm& form,
                                                    const torch::Tensor& logit) {
  if (form.output == CriticForm::Output::linear) {
    return {torch::ones_like(logit), torch::zeros_like(logit)};
  }
  const auto s = torch::sigmoid(logit);
  const auto first = s * (1 - s) * scale_of(form);
  return {first, first * (1 - 2 * s)};
}

void by_slopes(const CriticPass::Layer& layer, torch::Tensor& x) {
  if (layer.slopes.defined()) x.mul_(layer.slopes);
}

void by_mask(const CriticPass::Layer& layer, torch::Tensor& x) {
  if (layer.mask.defined()) x.mul_(layer.mask);
}

/// L(z) = r o (z - mean z - xn o mean(z o xn)), in place: backward and tangent of the
/// normalisation at once.
void through_norm(const CriticPass::Layer& layer, torch::Tensor& z) {
  if (!layer.normal.defined()) return;
  const auto along = (z * layer.normal).mean(0);
  z.sub_(z.mean(0)).addcmul_(layer.normal, along, -1).mul_(layer.root);
}

/// a^T b where that is known to be symmetric: the lower triangle by blocks, mirrored. a, b [n, h]
torch::Tensor symmetric_product(const torch::Tensor& a, const torch::Tensor& b) {
  const int64_t h = a.size(1), n_blocks = std::clamp<int64_t>(h / 128, 1, 8);
  const auto out = torch::empty({h, h}, a.options());
  for (int64_t k = 0; k < n_blocks; ++k) {
    const int64_t begin = k * h / n_blocks, end = (k + 1) * h / n_blocks;
    const auto rows = out.slice(0, begin, end);
    rows.slice(1, 0, end).copy_(a.slice(1, begin, end).t().mm(b.slice(1, 0, end)));
    out.slice(0, 0, begin).slice(1, begin, end).copy_(rows.slice(1, 0, begin).t());
  }
  return out;
}

torch::Tensor logits(const Critic& critic, const torch::Tensor& hidden) {
  return hidden.mv(critic.weight) + critic.bias;
}

}  // namespace

std::vector<std::pair<std::string, torch::Tensor*>> Critic::tensors() {
  std::vector<std::pair<std::string, torch::Tensor*>> out;
  for (size_t k = 0; k < layers.size(); ++k) {
    const std::string number = std::to_string(k + 1);
    out.emplace_back("weight" + number, &layers[k].weight);
    out.emplace_back("bias" + number, &layers[k].bias);
    if (!form.batch_norm) continue;
    out.emplace_back("gamma" + number, &layers[k].gamma);
    out.emplace_back("beta" + number, &layers[k].beta);
  }
  out.emplace_back("weight", &weight);
  out.emplace_back("bias", &bias);
  return out;
}

Critic Critic::zeros_like() const {
  Critic out = *this;
  for (auto& [name, tensor] : out.tensors()) *tensor = torch::zeros_like(*tensor).detach();
  return out;
}

CriticPass critic_pass(const Critic& critic, const torch::Tensor& first, const CriticMasks& masks) {
  const torch::NoGradGuard no_grad;
  const CriticForm& form = critic.form;
  CriticPass pass;
  torch::Tensor a = first + critic.layers[0].bias;
  for (size_t k = 0; k < critic.layers.size(); ++k) {
    const Critic::Layer& layer = critic.layers[k];
    CriticPass::Layer kept;
    if (form.slope != 1) {
      kept.slopes = torch::where(a > 0, torch::ones({}, a.options()),
                                 torch::full({}, form.slope, a.options()));
      a.mul_(kept.slopes);
    }
    if (form.batch_norm) {
      a.sub_(a.mean(0));
      kept.root = (a.square().mean(0) + kNormEps).rsqrt();
      kept.normal = a.mul_(kept.root);
      a = torch::addcmul(layer.beta, kept.normal, layer.gamma);
    }
    if (!masks.empty()) {
      kept.mask = masks[k];
      a = form.batch_norm ? a.mul_(kept.mask) : a * kept.mask;
    }
    kept.hidden = a;
    pass.layers.push_back(kept);
    if (k + 1 < critic.layers.size()) {
      const Critic::Layer& next = critic.layers[k + 1];
      a = torch::addmm(next.bias, a, next.weight.t());
    }
  }
  pass.logit = logits(critic, a);
  pass.score = score_of(form, pass.logit);
  return pass;
}

torch::Tensor critic_backward(const Critic& critic, const CriticPass& pass,
                              const torch::Tensor& upstream, Critic* gradients) {
  const torch::NoGradGuard no_grad;
  const auto slope = upstream * derivatives(critic.form, pass.logit).first;
  if (gradients != nullptr) {
    gradients->weight.addmv_(pass.layers.back().hidden.t(), slope);
    gradients->bias.add_(slope.sum());
  }
  torch::Tensor p = torch::outer(slope, critic.weight);
  for (size_t k = critic.layers.size(); k-- > 0;) {
    const CriticPass::Layer& at = pass.layers[k];
    by_mask(at, p);
    if (critic.form.batch_norm) {
      if (gradients != nullptr) {
        gradients->layers[k].gamma.add_((p * at.normal).sum(0));
        gradients->layers[k].beta.add_(p.sum(0));
      }
      p.mul_(critic.layers[k].gamma);
      through_norm(at, p);
    }
    by_slopes(at, p);
    if (gradients != nullptr) {
      gradients->layers[k].bias.add_(p.sum(0));
      if (k > 0) gradients->layers[k].weight.addmm_(p.t(), pass.layers[k - 1].hidden);
    }
    if (k > 0) p = p.mm(critic.layers[k].weight);
  }
  return p;
}

namespace {

struct PassHolder : torch::CustomClassHolder {
  PassHolder(Critic c, CriticPass p) : critic(std::move(c)), pass(std::move(p)) {}
  Critic critic;
  CriticPass pass;
};

class CriticScore : public torch::autograd::Function<CriticScore> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& first,
                               const Critic& critic, const CriticMasks* masks) {
    CriticPass pass = critic_pass(critic, first, *masks);
    const torch::Tensor score = pass.score.clone();
    context->saved_data["pass"] =
        c10::IValue::make_capsule(c10::make_intrusive<PassHolder>(critic, std::move(pass)));
    return score;
  }
  static tensor_list backward(AutogradContext* context, tensor_list upstream) {
    const auto capsule = context->saved_data["pass"].toCapsule();
    const auto& held = *static_cast<PassHolder*>(capsule.get());
    return {critic_backward(held.critic, held.pass, upstream[0], nullptr), {}, {}};
  }
};

}  // namespace

torch::Tensor critic_score(const Critic& critic, const torch::Tensor& first,
                           const CriticMasks& masks) {
  return CriticScore::apply(first, critic, &masks);
}

GradientPenalty gradient_penalty(const Critic& critic, const CriticPass& pass, double weight,
                                 Critic& gradients) {
  const torch::NoGradGuard no_grad;
  const bool norm = critic.form.batch_norm;
  const size_t n_layers = critic.layers.size();
  const int64_t n = pass.score.size(0);
  const auto [y1, y2] = derivatives(critic.form, pass.logit);
  const torch::Tensor& w1 = critic.layers[0].weight;  // [n_inputs, h1]

  // Reverse: t[k] = R o adjoint of H_k, adjoint[k] of A_k; the last, V, times W1 is the derivative.
  std::vector<torch::Tensor> t(n_layers), adjoint(n_layers);
  torch::Tensor p = torch::outer(y1, critic.weight);
  for (size_t k = n_layers; k-- > 0;) {
    const CriticPass::Layer& at = pass.layers[k];
    by_mask(at, p);
    t[k] = p;
    p = norm ? t[k] * critic.layers[k].gamma : t[k].clone();
    through_norm(at, p);
    by_slopes(at, p);
    adjoint[k] = p;
    if (k > 0) p = p.mm(critic.layers[k].weight);
  }
  const torch::Tensor& v = adjoint[0];
  const int64_t n_inputs = w1.size(0), h1 = w1.size(1);
  const bool by_gram = h1 * (n_inputs + n) < 2 * n * n_inputs;
  torch::Tensor tangent;  // T = V W1 W1^T
  if (by_gram) {
    tangent = v.mm(symmetric_product(w1, w1));
  } else {
    tangent = torch::zeros_like(v);
    for (int64_t begin = 0; begin < n_inputs; begin += h1) {
      const auto block = w1.narrow(0, begin, std::min(h1, n_inputs - begin));
      tangent.addmm_(v.mm(block.t()), block);
    }
  }
  GradientPenalty out;
  const auto squares = (tangent * v).sum(1);
  const auto flat = squares <= kFlat * kFlat;
  const auto rho = squares.clamp_min(kFlat * kFlat).sqrt();
  out.slopes = rho;
  out.value = (rho - 1).square().mean() * weight;
  const auto c = ((1 - rho.reciprocal()) * (2 * weight / static_cast<double>(n)))
                     .masked_fill_(flat, 0);  // of the rows

  // Forward along c T.
  tangent.mul_(c.unsqueeze(1));
  std::vector<torch::Tensor> u(n_layers), moved(n_layers), hidden(n_layers);
  for (size_t k = 0; k < n_layers; ++k) {
    const CriticPass::Layer& at = pass.layers[k];
    by_slopes(at, tangent);
    u[k] = tangent;
    moved[k] = u[k];
    if (norm) {
      moved[k] = u[k].clone();
      through_norm(at, moved[k]);
    }
    hidden[k] = norm ? moved[k] * critic.layers[k].gamma : moved[k].clone();
    by_mask(at, hidden[k]);
    if (k + 1 < n_layers) tangent = hidden[k].mm(critic.layers[k + 1].weight.t());
  }
  const auto es = y2 * hidden.back().mv(critic.weight);
  gradients.weight.addmv_(hidden.back().t(), y1).addmv_(pass.layers.back().hidden.t(), es);
  gradients.bias.add_(es.sum());

  // Reverse of both.
  p = torch::outer(es, critic.weight);
  for (size_t k = n_layers; k-- > 0;) {
    const CriticPass::Layer& at = pass.layers[k];
    Critic::Layer& to = gradients.layers[k];
    by_mask(at, p);
    if (norm) {
      to.gamma.add_((t[k] * moved[k]).sum(0)).add_((p * at.normal).sum(0));
      to.beta.add_(p.sum(0));
      const auto q = t[k].mul_(critic.layers[k].gamma);
      const auto along_u = (u[k] * at.normal).mean(0), along_q = (q * at.normal).mean(0);
      const auto along_v = (q * moved[k]).mean(0);
      // zz = -r o (along_u o q + along_q o u) goes through the normalisation with gamma o p.
      p.mul_(critic.layers[k].gamma);
      p.addcmul_(q, at.root * along_u, -1).addcmul_(u[k], at.root * along_q, -1);
      through_norm(at, p);
      p.addcmul_(at.normal, at.root * along_v, -1);
    }
    by_slopes(at, p);
    to.bias.add_(p.sum(0));
    if (k == 0) break;
    to.weight.addmm_(adjoint[k].t(), hidden[k - 1]).addmm_(p.t(), pass.layers[k - 1].hidden);
    p = p.mm(critic.layers[k].weight);
  }
  out.adjoint = p;

  torch::Tensor& to = gradients.layers[0].weight;
  if (by_gram) {
    to.addmm_(w1, symmetric_product(v * c.unsqueeze(1), v));
  } else {
    const auto weighted = v * c.unsqueeze(1);
    for (int64_t begin = 0; begin < n_inputs; begin += h1) {
      const int64_t size = std::min(h1, n_inputs - begin);
      to.narrow(0, begin, size).addmm_(v.mm(w1.narrow(0, begin, size).t()).t(), weighted);
    }
  }
  return out;
}

torch::Tensor critic_composed(const Critic& critic, const torch::Tensor& rows,
                              const CriticMasks& masks) {
  torch::Tensor x = rows;
  for (size_t k = 0; k < critic.layers.size(); ++k) {
    const Critic::Layer& layer = critic.layers[k];
    x = torch::addmm(layer.bias, x, k == 0 ? layer.weight : layer.weight.t());
    if (critic.form.slope != 1) x = torch::leaky_relu(x, critic.form.slope);
    if (critic.form.batch_norm) {
      x = x - x.mean(0);
      x = layer.gamma * (x * (x.square().mean(0) + kNormEps).rsqrt()) + layer.beta;
    }
    if (!masks.empty()) x = x * masks[k];
  }
  return score_of(critic.form, logits(critic, x));
}

std::pair<torch::Tensor, torch::Tensor> gradient_penalty_composed(const Critic& critic,
                                                                  const torch::Tensor& rows,
                                                                  const CriticMasks& masks,
                                                                  double weight) {
  const auto x = rows.detach().requires_grad_();
  const auto score = critic_composed(critic, x, masks).sum();
  const auto slope = torch::autograd::grad({score}, {x}, {}, /*retain_graph=*/true,
                                           /*create_graph=*/true)[0];
  const auto rho = slope.square().sum(1).clamp_min(kFlat * kFlat).sqrt();
  return {(rho - 1).square().mean() * weight, rho};
}

}  // namespace tessera
