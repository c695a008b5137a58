#include "tessera/base/lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "tests/unit/temp_folder.h"

namespace {
std::atomic<int> g_no_locks{0};  // the error of a file system without locks
}  // namespace

// Found before libc's by the library too.
extern "C" int flock(int fd, int operation) noexcept {
  if (g_no_locks == 0) return static_cast<int>(syscall(SYS_flock, fd, operation));
  errno = g_no_locks;
  return -1;
}

namespace tessera {
namespace {

/// A process that holds the lock of `folder` until it is killed.
class Holder {
 public:
  explicit Holder(const fs::path& folder) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      const FolderLock lock(folder);
      if (write(ready[1], "x", 1) == 1) pause();
      _exit(1);
    }
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
  }
  ~Holder() {
    if (pid_ > 0) end();
  }
  void end() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

TEST(FolderLock, SecondProcessIsToldWhoHoldsIt) {
  const TempFolder folder;
  const Holder holder(folder / "run");
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  EXPECT_EQ(error_of([&] { FolderLock(folder / "run"); }),
            fmt::format("2: {} is in use by process {} on host {}: wait until it ends, or choose "
                        "another folder",
                        (folder / "run").string(), holder.pid(), host.data()));
}

TEST(FolderLock, KilledHolderLetsGo) {
  const TempFolder folder;
  Holder holder(folder.path());
  EXPECT_THROW(FolderLock{folder.path()}, InputError);
  holder.end();
  EXPECT_TRUE(fs::exists(folder / ".lock"));  // left behind, and no hindrance
  {
    const FolderLock lock(folder.path());
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(FolderLock, HoldsWithinOneProcessAndMoves) {
  const TempFolder folder;
  FolderLock first(folder.path());
  EXPECT_THROW(FolderLock{folder.path()}, InputError);
  {
    const FolderLock second(std::move(first));
    EXPECT_THROW(FolderLock{folder.path()}, InputError);
  }
  EXPECT_NO_THROW(FolderLock{folder.path()});
}

TEST(FolderLock, ChildThatRunsAnotherProgramDoesNotKeepIt) {
  const TempFolder folder;
  pid_t child = -1;
  {
    const FolderLock lock(folder.path());
    child = fork();
    if (child == 0) {
      execl("/bin/sleep", "sleep", "60", static_cast<char*>(nullptr));
      _exit(127);
    }
    // Until it is another program.
    const std::string name = fmt::format("/proc/{}/comm", child);
    while (read_file(name) != "sleep\n") usleep(1000);
  }
  EXPECT_NO_THROW(FolderLock{folder.path()});
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

// Every round all ask at once, while the file is made, removed and made again.
TEST(FolderLock, RaceHasOneWinnerAtATime) {
  const TempFolder folder;
  std::atomic<int> holding{0}, overlaps{0}, taken{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        try {
          const FolderLock lock(folder.path());
          overlaps += ++holding > 1 ? 1 : 0;
          ++taken;
          std::this_thread::yield();
          --holding;
        } catch (const InputError&) {
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(overlaps, 0);
  EXPECT_GT(taken, 0);
}

TEST(FolderLock, FileSystemWithoutLocksIsToldAndGoesOn) {
  const TempFolder folder;
  for (const int error : {ENOLCK, ENOSYS, EOPNOTSUPP}) {
    std::vector<std::string> warnings;
    const Log log([&](Level level, const std::string& text) {
      EXPECT_EQ(level, Level::warn);
      warnings.push_back(text);
    });
    g_no_locks = error;
    EXPECT_NO_THROW(FolderLock(folder.path(), log));
    g_no_locks = 0;
    ASSERT_EQ(warnings.size(), 1);
    EXPECT_NE(warnings[0].find("cannot be locked"), std::string::npos);
  }
}

TEST(FolderLock, FolderThatCannotBeWritten) {
  EXPECT_THROW(FolderLock{"/proc/sys"}, RunError);
  EXPECT_THROW(FolderLock{"/dev/null/run"}, RunError);
}

}  // namespace
}  // namespace tessera
