#include "tessera/model/state.h"

#include <c10/core/GradMode.h>

#include <string_view>

#include "tessera/base/error.h"

namespace tessera {
namespace {

TensorMap& file_of(State::Saved& saved, Role role) {
  return role == Role::scoring ? saved.weights : saved.optimizer;
}

const torch::Tensor* find(const TensorMap& tensors, const std::string& name) {
  const auto it = tensors.find(name);
  return it == tensors.end() ? nullptr : &it->second;
}

/// Copies into the tensor that is there, so that whoever holds it keeps holding it.
void assign(const std::string& name, torch::Tensor& to, const torch::Tensor* from) {
  if (from == nullptr) {
    if (!to.defined()) return;
    throw data_error("checkpoint has no '{}'; it was made by another model or version", name);
  }
  if (!to.defined()) {
    to = from->clone();
    return;
  }
  if (to.sizes() != from->sizes() || to.scalar_type() != from->scalar_type()) {
    throw data_error("checkpoint tensor '{}' is [{}], wanted [{}]", name,
                     fmt::join(from->sizes().vec(), ", "), fmt::join(to.sizes().vec(), ", "));
  }
  const c10::AutoGradMode no_grad(false);
  to.copy_(*from);
}

const Json& value_of(const State::Saved& saved, const std::string& name) {
  if (!saved.values.is_object() || !saved.values.contains(name)) {
    throw data_error("checkpoint has no '{}'; it was made by another model or version", name);
  }
  return saved.values[name];
}

/// Exit 3 for what is no number, and for an int64_t that is none in the file: 1e300, 2.7.
template <typename T>
T number_of(const State::Saved& saved, const std::string& name) {
  value_of(saved, name);
  return json_get<T>(saved.values, name, "checkpoint");
}

}  // namespace

void State::add(const std::string& name, torch::Tensor& value, Role role) {
  entries_.push_back({name, role,
                      [name, role, &value](Saved& saved, bool) {
                        if (value.defined()) {
                          file_of(saved, role)[name] = value.detach().contiguous();
                        }
                      },
                      [name, role, &value](const Saved& saved) {
                        assign(name, value,
                               find(role == Role::scoring ? saved.weights : saved.optimizer, name));
                      }});
}

void State::add(const std::string& name, RowTable& table, Role role) {
  const auto save = [name, role, &table](Saved& saved, bool weights_only) {
    const RowTable::Parts parts = table.parts();
    file_of(saved, role)[name] = parts.value;
    if (weights_only) return;
    saved.values[name + ".step"] = parts.step;
    saved.optimizer[name + ".last_step"] = parts.last_step;
    if (parts.m.numel() == 0) return;
    saved.optimizer[name + ".m"] = parts.m;
    saved.optimizer[name + ".v"] = parts.v;
  };
  const auto load = [name, role, &table](const Saved& saved) {
    RowTable::Parts parts;
    parts.value = torch::empty_like(table.value());
    assign(name, parts.value, find(role == Role::scoring ? saved.weights : saved.optimizer, name));
    parts.last_step = torch::zeros({parts.value.size(0)}, torch::kInt64);
    if (const auto* last = find(saved.optimizer, name + ".last_step")) {
      assign(name + ".last_step", parts.last_step, last);
      parts.step = number_of<int64_t>(saved, name + ".step");
    }
    if (const auto* m = find(saved.optimizer, name + ".m")) {
      parts.m = torch::empty_like(parts.value);
      parts.v = torch::empty_like(parts.value);
      assign(name + ".m", parts.m, m);
      assign(name + ".v", parts.v, find(saved.optimizer, name + ".v"));
    }
    table.load(std::move(parts));
  };
  entries_.push_back({name, role, save, load});
}

void State::add(const std::string& name, DenseAdam& adam, Role role) {
  entries_.push_back(
      {name, role,
       [name, &adam](Saved& saved, bool) {
         for (const auto& [tensor, moments] : adam.moments()) {
           saved.optimizer[name + "." + tensor + ".m"] = moments.m;
           saved.optimizer[name + "." + tensor + ".v"] = moments.v;
           saved.values[name + "." + tensor + ".step"] = moments.step;
         }
       },
       [name, &adam](const Saved& saved) {
         adam.moments().clear();
         const std::string prefix = name + ".";
         for (const auto& [key, tensor] : saved.optimizer) {
           if (key.rfind(prefix, 0) != 0 || !std::string_view(key).ends_with(".m")) continue;
           const std::string of = key.substr(prefix.size(), key.size() - prefix.size() - 2);
           const auto* v = find(saved.optimizer, prefix + of + ".v");
           if (v == nullptr || v->sizes() != tensor.sizes()) {
             throw data_error("checkpoint has no '{}{}.v' beside its '.m'", prefix, of);
           }
           adam.moments()[of] = {tensor.clone(), v->clone(),
                                 number_of<int64_t>(saved, prefix + of + ".step")};
         }
       }});
}

void State::add(const std::string& name, int64_t& value, Role role) {
  entries_.push_back(
      {name, role, [name, &value](Saved& saved, bool) { saved.values[name] = value; },
       [name, &value](const Saved& saved) { value = number_of<int64_t>(saved, name); }});
}

void State::add(const std::string& name, double& value, Role role) {
  entries_.push_back(
      {name, role, [name, &value](Saved& saved, bool) { saved.values[name] = value; },
       [name, &value](const Saved& saved) { value = number_of<double>(saved, name); }});
}

void State::add(const std::string& name, Json& value, Role role) {
  entries_.push_back({name, role,
                      [name, &value](Saved& saved, bool) { saved.values[name] = value; },
                      [name, &value](const Saved& saved) { value = value_of(saved, name); }});
}

State::Saved State::save(bool weights_only) const {
  Saved saved;
  for (const auto& entry : entries_) {
    if (!weights_only || entry.role == Role::scoring) entry.save(saved, weights_only);
  }
  return saved;
}

void State::load(const Saved& saved, bool weights_only) {
  for (const auto& entry : entries_) {
    if (!weights_only || entry.role == Role::scoring) entry.load(saved);
  }
}

}  // namespace tessera
