#include "tessera/encode/exec.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "tessera/base/error.h"
#include "tessera/data/feature.h"
#include "tessera/data/npy.h"

namespace tessera {
namespace {

constexpr size_t kOutputStart = size_t{16} << 20, kOutputOfOne = size_t{256} << 10;

/// A child whose stdin and stdout are ours; ended when this ends.
class Child {
 public:
  explicit Child(const std::string& command) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) fail();
    pid_ = fork();
    if (pid_ < 0) fail();
    if (pid_ == 0) {
      setpgid(0, 0);
      dup2(in[0], 0);
      dup2(out[1], 1);
      signal(SIGPIPE, SIG_DFL);
      execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = in[1];
    from_ = out[0];
    fcntl(to_, F_SETFL, O_NONBLOCK);
  }
  ~Child() {
    close_input();
    close(from_);
    if (pid_ > 0) {
      kill(-pid_, SIGTERM);
      waitpid(pid_, nullptr, 0);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Writes `input` while reading, so that neither side waits for ever; false when asked to stop.
  bool talk(const std::string& input, size_t limit, std::string& output,
            const std::function<bool()>& stop_requested) {
    size_t sent = 0;
    if (input.empty()) close_input();
    char buffer[1 << 16];
    while (true) {
      if (stop_requested()) return false;
      pollfd wait[2] = {{from_, POLLIN, 0}, {to_, POLLOUT, 0}};
      const int ready = poll(wait, to_ >= 0 ? 2 : 1, 200);
      if (ready < 0 && errno != EINTR) fail();
      if (ready <= 0) continue;
      if (to_ >= 0 && wait[1].revents != 0) {
        const ssize_t n = write(to_, input.data() + sent, input.size() - sent);
        if (n > 0) sent += static_cast<size_t>(n);
        // A command that reads no further may still answer what it has read.
        if (sent == input.size() || (n < 0 && errno != EAGAIN && errno != EINTR)) close_input();
      }
      if (wait[0].revents != 0) {
        const ssize_t n = read(from_, buffer, sizeof(buffer));
        if (n > 0) output.append(buffer, static_cast<size_t>(n));
        if (output.size() > limit) {
          throw data_error(
              "the encoder's command wrote more than {} MiB: that is no answer to what it was "
              "asked",
              limit >> 20);
        }
        if (n == 0) return true;
        if (n < 0 && errno != EINTR) fail();
      }
    }
  }

  /// Its exit code, or 128 + the signal that ended it.
  int end() {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  void close_input() {
    if (to_ >= 0) close(to_);
    to_ = -1;
  }
  [[noreturn]] static void fail() {
    throw RunError(Exit::failed,
                   fmt::format("cannot run the encoder's command: {}", std::strerror(errno)));
  }
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1;
};

constexpr const char* kNotFinite = "vectors with entries that are no finite numbers";

void count_failure(ExecAnswers& answers, const std::string& reason) {
  answers.failures[reason] = answers.failures.value(reason, int64_t{0}) + 1;
}

bool is_finite(const std::vector<float>& row) {
  return std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); });
}

void read_npy_answer(const std::string& output, size_t n, ExecAnswers& answers) {
  const std::string what = "the command's .npy";
  const NpyHeader head = parse_npy(output, what);
  const bool numbers =
      head.dtype == torch::kHalf || head.dtype == torch::kFloat || head.dtype == torch::kDouble;
  if (!numbers || head.shape.size() != 2 || head.shape[0] != static_cast<int64_t>(n)) {
    throw data_error("{}: wanted floats [{}, width], found [{}]", what, n,
                     fmt::join(head.shape, ", "));
  }
  const int64_t width = head.shape[1];
  const size_t item = head.dtype == torch::kHalf ? 2 : head.dtype == torch::kFloat ? 4 : 8;
  for (size_t r = 0; r < n; ++r) {
    auto& row = answers.rows[r];
    row.resize(static_cast<size_t>(width));
    floats_of(head.dtype, output.data() + head.data_offset + r * static_cast<size_t>(width) * item,
              row.data(), width);
    if (is_finite(row)) continue;
    count_failure(answers, kNotFinite);
    row.clear();
  }
}

void read_json_answers(const std::string& output, const std::vector<Json>& requests,
                       ExecAnswers& answers) {
  std::unordered_map<std::string, size_t> place;
  for (size_t r = 0; r < requests.size(); ++r) {
    place[requests[r]["id"].get<std::string>()] = r;
  }
  std::vector<bool> answered(requests.size());
  const auto fail = [&](const std::string& reason) { count_failure(answers, reason); };
  int64_t line = 0;
  for (size_t at = 0; at < output.size();) {
    const size_t end = std::min(output.find('\n', at), output.size());
    const std::string text = output.substr(at, end - at);
    at = end + 1;
    ++line;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json answer = Json::parse(text, nullptr, false);
    if (!answer.is_object() || !answer.contains("id") || !answer["id"].is_string()) {
      throw data_error(
          "the command's line {}: wanted {{\"id\": \"..\", \"vector\": [..]}}, found '{}'", line,
          printable(text));
    }
    const auto found = place.find(answer["id"].get<std::string>());
    if (found == place.end()) {
      fail("ids that were not asked for");
      continue;
    }
    if (answered[found->second])
      throw data_error("the command answers id '{}' twice", printable(found->first));
    answered[found->second] = true;
    const auto vector = answer.find("vector");
    if (vector == answer.end() || !vector->is_array() || vector->empty()) {
      fail(answer.contains("error") ? "errors of the command" : "answers without a vector");
      continue;
    }
    std::vector<float> row;
    for (const auto& value : *vector) {
      row.push_back(value.is_number() ? value.get<float>() : std::nanf(""));
    }
    if (!is_finite(row)) {
      fail(kNotFinite);
      continue;
    }
    answers.rows[found->second] = std::move(row);
  }
  for (const bool done : answered) {
    if (!done) fail("requests without an answer");
  }
}

}  // namespace

ExecAnswers run_exec(const std::string& command, const std::vector<Json>& requests,
                     const std::function<bool()>& stop_requested) {
  std::string input, output;
  for (const auto& request : requests) {
    input += request.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  Child child(command);
  const size_t limit = kOutputStart + kOutputOfOne * requests.size();
  if (!child.talk(input, limit, output, stop_requested)) {
    throw RunError(Exit::interrupted_without_checkpoint,
                   "interrupted: no feature was written, call again to start over");
  }
  const int code = child.end();
  if (code != 0) {
    throw data_error("the encoder's command ended with exit code {}: {}", code,
                     printable(command, 200));
  }
  ExecAnswers answers;
  answers.rows.resize(requests.size());
  if (output.rfind("\x93NUMPY", 0) == 0) {
    read_npy_answer(output, requests.size(), answers);
  } else {
    read_json_answers(output, requests, answers);
  }
  return answers;
}

}  // namespace tessera
