#include "tessera/base/command.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

constexpr size_t kMost = size_t{64} << 20;

bool never() { return false; }

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Neither running nor a zombie.
bool is_gone(const fs::path& file_of_pid) {
  const pid_t pid = std::stoi(read_file(file_of_pid));
  return kill(pid, 0) != 0 && errno == ESRCH;
}

void expect_no_child() {
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Command, AnswersMoreThanAPipeHolds) {
  std::string output;
  const std::string input(3 << 20, 'x');
  EXPECT_EQ(run_command("cat; exit 7", input, kMost, output, "it", never), 7);
  EXPECT_TRUE(output == input);
  EXPECT_EQ(run_command("kill -9 $$", "", kMost, output, "it", never), 128 + SIGKILL);
  expect_no_child();
}

TEST(Command, ThatReadsNothingEndsNobody) {
  int status = 0;
  const pid_t pid = fork();
  if (pid == 0) {
    signal(SIGPIPE, SIG_DFL);  // as in a program that knows nothing of us
    std::string output;
    const auto code = run_command("exec <&-; echo answer; sleep .1", std::string(1 << 20, 'x'),
                                  kMost, output, "it", never);
    _exit(code == 0 && output == "answer\n" ? 0 : 1);
  }
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Command, SignalsOfTheProgramAreNotInherited) {
  struct sigaction ignore = {}, before = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &before);
  std::string output;
  // Ended by SIGPIPE, as any program of a pipe whose reader went away.
  run_command("sh -c 'while :; do echo x; done; echo $? >&2' | head -1 > /dev/null; echo done", "",
              kMost, output, "it", never);
  sigaction(SIGPIPE, &before, nullptr);
  EXPECT_EQ(output, "done\n");
}

TEST(Command, ThatIgnoresSigtermIsKilledWithAllThatItStarted) {
  const TempFolder folder;
  const std::string command = fmt::format(
      "trap '' TERM; sh -c \"trap '' TERM; echo \\$\\$ > {0}/inner; while :; do sleep 1; done\" & "
      "echo $$ > {0}/outer; while :; do sleep 1; done",
      folder.path().string());
  std::string output;
  std::optional<int> code = 0;
  const double seconds = seconds_of([&] {
    code = run_command(command, "", kMost, output, "it", [&] {
      return fs::exists(folder / "inner") && read_file(folder / "inner").ends_with('\n') &&
             fs::exists(folder / "outer") && read_file(folder / "outer").ends_with('\n');
    });
  });
  EXPECT_EQ(code, std::nullopt);
  EXPECT_LT(seconds, 10);
  expect_no_child();
  EXPECT_TRUE(is_gone(folder / "outer"));
  // Not ours to wait for: whoever inherits it does that at once.
  for (int i = 0; i < 200 && !is_gone(folder / "inner"); ++i) usleep(10000);
  EXPECT_TRUE(is_gone(folder / "inner") ||
              read_file("/proc/" + std::to_string(std::stoi(read_file(folder / "inner"))) + "/stat")
                      .find(") Z ") != std::string::npos);
}

TEST(Command, ThatClosedItsOutputAndGoesOnStopsToo) {
  std::string output;
  int looks = 0;
  const double seconds = seconds_of([&] {
    EXPECT_EQ(
        run_command("exec >&-; sleep 60", "", kMost, output, "it", [&] { return ++looks > 5; }),
        std::nullopt);
  });
  EXPECT_LT(seconds, 10);
  expect_no_child();
}

TEST(Command, TooMuchOutput) {
  std::string output;
  EXPECT_EQ(error_of([&] {
              run_command("cat /dev/zero", "", size_t{1} << 20, output, "the command", never);
            }),
            "3: the command wrote more than 1 MiB: that is no answer to what it was asked");
  expect_no_child();
}

}  // namespace
}  // namespace tessera
