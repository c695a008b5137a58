#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera {

/// Exit codes of the program: what a scheduler may do next is told by the number alone.
enum class Exit : int {
  done = 0,
  failed = 1,
  usage = 2,
  data = 3,
  interrupted = 4,
  diverged = 5,
  interrupted_without_checkpoint = 130,
};

/// A mistake of the user: one line, lower case, the thing, what was wanted, what was found.
class InputError : public std::runtime_error {
 public:
  InputError(Exit code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Exit code() const { return code_; }

 private:
  Exit code_;
};

/// A run that must stop although nobody typed anything wrong: full disk, NaN in a loss.
class RunError : public std::runtime_error {
 public:
  RunError(Exit code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Exit code() const { return code_; }

 private:
  Exit code_;
};

/// A wrong flag, setting, name or value (exit code 2).
template <typename... Args>
InputError usage_error(fmt::format_string<Args...> text, Args&&... args) {
  return {Exit::usage, fmt::format(text, std::forward<Args>(args)...)};
}

/// A file or table that cannot be used (exit code 3).
template <typename... Args>
InputError data_error(fmt::format_string<Args...> text, Args&&... args) {
  return {Exit::data, fmt::format(text, std::forward<Args>(args)...)};
}

/// The candidate nearest to `name` by edit distance, case and punctuation aside; empty when none is
/// near.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

/// " (did you mean 'x'?)" for the nearest candidate, or an empty string.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

/// Lower case without punctuation: the form in which names are compared.
std::string squeezed(std::string_view name);

/// `text` fit for one line of a message: control and non-ASCII bytes escaped, cut after `limit`
/// bytes.
std::string printable(std::string_view text, size_t limit = 60);

}  // namespace tessera
