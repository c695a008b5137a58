#pragma once

#include "tessera/model/model.h"

namespace tessera {

/// A model that changes its parameters itself in place of a backward pass and a step of the
/// trainer's optimiser; found by dynamic_cast.
class OwnStep {
 public:
  virtual ~OwnStep() = default;
  /// False where the settings leave the step to the trainer.
  virtual bool steps_itself() const = 0;
  /// One step at the setting `learning_rate`; the batch has no distinct rows. Returns what loss()
  /// would have said of the batch, without gradients.
  virtual Loss step(const Batch& batch) = 0;
};

}  // namespace tessera
