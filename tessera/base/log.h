#pragma once

#include <fmt/format.h>

#include <functional>
#include <string>
#include <utility>

namespace tessera {

enum class Level { debug, info, warn, error };

/// Where messages go. The library never prints: the program hands in the sink.
class Log {
 public:
  using Sink = std::function<void(Level, const std::string&)>;
  Log() = default;
  explicit Log(Sink sink) : sink_(std::move(sink)) {}

  template <typename... Args>
  void info(fmt::format_string<Args...> text, Args&&... args) const {
    write(Level::info, fmt::format(text, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warn(fmt::format_string<Args...> text, Args&&... args) const {
    write(Level::warn, fmt::format(text, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void debug(fmt::format_string<Args...> text, Args&&... args) const {
    write(Level::debug, fmt::format(text, std::forward<Args>(args)...));
  }
  void write(Level level, const std::string& message) const {
    if (sink_) sink_(level, message);
  }

 private:
  Sink sink_;
};

}  // namespace tessera
