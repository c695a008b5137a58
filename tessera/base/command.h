#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace tessera {

/// Runs `command` by the shell, in a process group of its own, with `input` on its stdin and what
/// it writes to its stdout appended to `output`; its stderr is ours. Returns its exit code, or 128
/// + the signal that ended it; nothing when asked to stop. However this ends, no process of it is
/// left: what does not end by SIGTERM is killed. Exit 3 for more than `most_output` bytes;
/// RunError where no process can be made. Errors call the command `what`.
std::optional<int> run_command(const std::string& command, std::string_view input,
                               size_t most_output, std::string& output, const std::string& what,
                               const std::function<bool()>& stop_requested);

}  // namespace tessera
