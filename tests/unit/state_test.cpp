#include "tessera/model/state.h"

#include <gtest/gtest.h>

#include <limits>

#include "tessera/base/error.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

std::string load(const Json& value) {
  int64_t step = 7;
  State state;
  state.add("step", step, Role::training);
  State::Saved saved = state.save();
  saved.values["step"] = value;
  const std::string error = error_of([&] { state.load(saved); });
  return error == "no error" ? std::to_string(step) : error;
}

TEST(State, WholeNumbersMustBeWholeAndFit) {
  EXPECT_EQ(load(12), "12");
  EXPECT_EQ(load(-1), "-1");
  EXPECT_EQ(load(1e300), "3: checkpoint: 'step' must be an integer, found 1e+300");
  EXPECT_EQ(load(2.5), "3: checkpoint: 'step' must be an integer, found 2.5");
  EXPECT_EQ(load(std::numeric_limits<uint64_t>::max()),
            "3: checkpoint: 'step' must be a 64-bit integer, found 18446744073709551615");
  EXPECT_EQ(load("12"), "3: checkpoint: 'step' must be an integer, found \"12\"");
  EXPECT_EQ(load(Json()), "3: checkpoint: 'step' must be an integer, found null");
}

TEST(State, WhatIsMissingIsNamed) {
  double rate = 0.5;
  State state;
  state.add("rate", rate, Role::training);
  EXPECT_EQ(error_of([&] { state.load(State::Saved{}); }),
            "3: checkpoint has no 'rate'; it was made by another model or version");
}

}  // namespace
}  // namespace tessera
