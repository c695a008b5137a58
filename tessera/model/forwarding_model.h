#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/model/model.h"

namespace tessera {

/// Stands around another model and hands everything on, so that who derives from it changes what it
/// wants and loses nothing.
class ForwardingModel : public Model {
 public:
  ForwardingModel(Model& inner, const Context& context) : Model(context), inner_(inner) {}

  Abilities abilities() const override { return inner_.abilities(); }
  BatchSpec batch_spec() const override { return inner_.batch_spec(); }
  Loss loss(const Batch& batch) override { return inner_.loss(batch); }
  std::shared_ptr<const Scorer> freeze() override { return inner_.freeze(); }
  Offers offers() override { return inner_.offers(); }
  std::vector<std::pair<std::string, Axis>> axes() const override { return inner_.axes(); }
  std::vector<ParameterGroup> parameter_groups() override { return inner_.parameter_groups(); }
  void prepare(const Watch& watch) override { inner_.prepare(watch); }
  void begin_epoch(int64_t epoch, const Watch& watch) override { inner_.begin_epoch(epoch, watch); }
  void before_step(const Batch& batch) override { inner_.before_step(batch); }
  void end_epoch(int64_t epoch, const Watch& watch) override { inner_.end_epoch(epoch, watch); }
  void state(State& state) override { inner_.state(state); }

 protected:
  void forget() override { inner_.train(training()); }

  Model& inner_;
};

}  // namespace tessera
