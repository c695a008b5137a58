#include "tessera/base/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "tessera/base/error.h"
#include "tessera/base/sigpipe.h"

namespace tessera {
namespace {

constexpr int kWait = 50;    // milliseconds between two looks at `stop_requested`
constexpr int kGrace = 400;  // and from SIGTERM to SIGKILL

/// A child whose stdin and stdout are ours; ended, with all that it started, when this ends.
class Child {
 public:
  Child(const std::string& command, const std::string& what) : what_(what) {
    std::array<int, 2> in{-1, -1}, out{-1, -1};
    int error = pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0 ? errno : 0;
    if (error == 0) error = spawn(command, in[0], out[1]);
    if (in[0] >= 0) close(in[0]);
    if (out[1] >= 0) close(out[1]);
    to_ = in[1];
    from_ = out[0];
    if (error != 0) {
      close_pipes();
      fail(error);
    }
    fcntl(to_, F_SETFL, O_NONBLOCK);
  }
  ~Child() {
    close_pipes();
    if (pid_ < 0) return;
    kill(-pid_, SIGTERM);
    for (int waited = 0; waited < kGrace && !has_ended(); waited += 10) poll(nullptr, 0, 10);
    // Before its number is free again: the rest of its group.
    kill(-pid_, SIGKILL);
    reap();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Writes `input` while reading, so that neither side waits for ever; false when asked to stop.
  bool talk(std::string_view input, size_t most_output, std::string& output,
            const std::function<bool()>& stop_requested) {
    if (input.empty()) close_input();
    std::array<char, 1 << 16> buffer;
    while (true) {
      if (stop_requested()) return false;
      std::array<pollfd, 2> wait = {{{from_, POLLIN, 0}, {to_, POLLOUT, 0}}};
      const int ready = poll(wait.data(), to_ >= 0 ? 2 : 1, kWait);
      if (ready < 0 && errno != EINTR) fail(errno);
      if (ready <= 0) continue;
      if (to_ >= 0 && wait[1].revents != 0) {
        const SigpipeHeld held;
        const ssize_t n = write(to_, input.data(), input.size());
        if (n > 0) input.remove_prefix(static_cast<size_t>(n));
        // A command that reads no further may still answer what it has read.
        if (input.empty() || (n < 0 && errno != EAGAIN && errno != EINTR)) close_input();
      }
      if (wait[0].revents == 0) continue;
      const ssize_t n = read(from_, buffer.data(), buffer.size());
      if (n == 0) return true;
      if (n < 0 && errno != EINTR) fail(errno);
      if (n > 0) output.append(buffer.data(), static_cast<size_t>(n));
      if (output.size() > most_output) {
        throw data_error("{} wrote more than {} MiB: that is no answer to what it was asked", what_,
                         most_output >> 20);
      }
    }
  }

  /// Its exit code, or 128 + the signal that ended it; nothing when asked to stop.
  std::optional<int> end(const std::function<bool()>& stop_requested) {
    while (!has_ended()) {
      if (stop_requested()) return std::nullopt;
      poll(nullptr, 0, 2);
    }
    const int status = reap();
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  int spawn(const std::string& command, int in, int out) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t how;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in, 0);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    // The program's own handling of signals is none of the command's business.
    sigset_t none, usual;
    sigemptyset(&none);
    sigemptyset(&usual);
    for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP}) sigaddset(&usual, signal);
    posix_spawnattr_init(&how);
    posix_spawnattr_setsigdefault(&how, &usual);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setpgroup(&how, 0);
    posix_spawnattr_setflags(
        &how, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    std::array<const char*, 4> arguments = {"sh", "-c", command.c_str(), nullptr};
    // Returns once the command has its process group: kill(-pid) reaches it at any time.
    const int error = posix_spawn(&pid_, "/bin/sh", &actions, &how,
                                  const_cast<char* const*>(arguments.data()), environ);
    if (error != 0) pid_ = -1;
    posix_spawnattr_destroy(&how);
    posix_spawn_file_actions_destroy(&actions);
    return error;
  }
  /// Without taking its exit status, so that its number stays its own.
  bool has_ended() const {
    siginfo_t about = {};
    return waitid(P_PID, static_cast<id_t>(pid_), &about, WEXITED | WNOHANG | WNOWAIT) != 0 ||
           about.si_pid == pid_;
  }
  int reap() const {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
  }
  void close_input() {
    if (to_ >= 0) close(to_);
    to_ = -1;
  }
  void close_pipes() {
    close_input();
    if (from_ >= 0) close(from_);
    from_ = -1;
  }
  [[noreturn]] void fail(int error) const {
    throw RunError(Exit::failed, fmt::format("cannot run {}: {}", what_, std::strerror(error)));
  }

  std::string what_;
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1;
};

}  // namespace

std::optional<int> run_command(const std::string& command, std::string_view input,
                               size_t most_output, std::string& output, const std::string& what,
                               const std::function<bool()>& stop_requested) {
  Child child(command, what);
  if (!child.talk(input, most_output, output, stop_requested)) return std::nullopt;
  return child.end(stop_requested);
}

}  // namespace tessera
