#pragma once

#include <string>
#include <utility>

#include "tessera/base/error.h"

namespace tessera {

/// A value of a request that is refused. The message does not name the field: who asked knows it as
/// `field()`, a program as one of its flags.
class FieldError : public InputError {
 public:
  FieldError(std::string field, const InputError& error)
      : InputError(error), field_(std::move(field)) {}
  const std::string& field() const { return field_; }

 private:
  std::string field_;
};

}  // namespace tessera
