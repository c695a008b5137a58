#include "tessera/base/files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/unit/temp_folder.h"

namespace {

// The calls of a file system that is not the one of the tests; found before libc's by the library.
std::atomic<int> g_no_exchange{0};  // the error of one that cannot exchange
std::atomic<int> g_no_sync{0};      // the error of one that is broken
std::atomic<int> g_syncs_of_system{0};
std::function<void(const std::string& to)> g_before_rename;
std::set<std::pair<dev_t, ino_t>>* g_synced = nullptr;
std::mutex g_synced_mutex;

}  // namespace

extern "C" int renameat2(int from_folder, const char* from, int to_folder, const char* to,
                         unsigned flags) noexcept {
  if (g_no_exchange == 0) {
    return static_cast<int>(syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
  }
  errno = g_no_exchange;
  return -1;
}

extern "C" int rename(const char* from, const char* to) noexcept {
  if (g_before_rename) g_before_rename(to);
  return static_cast<int>(syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
}

extern "C" int fsync(int fd) {
  struct stat about = {};
  if (g_synced != nullptr && fstat(fd, &about) == 0) {
    const std::lock_guard lock(g_synced_mutex);
    g_synced->insert({about.st_dev, about.st_ino});
  }
  if (g_no_sync == 0) return static_cast<int>(syscall(SYS_fsync, fd));
  errno = g_no_sync;
  return -1;
}

extern "C" int syncfs(int fd) noexcept {
  ++g_syncs_of_system;
  return static_cast<int>(syscall(SYS_syncfs, fd));
}

namespace tessera {
namespace {

using Names = std::vector<std::string>;

/// Names in a folder, sorted.
Names names_in(const fs::path& folder) {
  Names out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    out.push_back(entry.path().filename().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

void write_set(const fs::path& place, const std::string& text) {
  write_folder(place, [&](const fs::path& to) { write_file(to / "a", text); });
}

std::string run_error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const RunError& e) {
    return std::to_string(static_cast<int>(e.code())) + ": " + e.what();
  }
  return "no error";
}

/// The exit status of a process that runs `body`; -1 where a signal ended it.
int in_child(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct AtEnd {
  std::function<void()> run;
  ~AtEnd() { run(); }
};

// ------------------------------------------------------------------------------ where outputs go

TEST(Outputs, FileThatALinkNamesIsReplacedAndTheLinkStays) {
  const TempFolder folder;
  fs::create_directory(folder / "far");
  folder.file("far/old", "before");
  fs::create_symlink("far/old", folder / "near");
  fs::create_symlink("near", folder / "chain");
  fs::create_symlink("far/new", folder / "dangling");
  write_file(folder / "chain", "after");
  write_file(folder / "dangling", "made");
  EXPECT_EQ(read_file(folder / "far" / "old"), "after");
  EXPECT_EQ(read_file(folder / "far" / "new"), "made");
  for (const char* link : {"near", "chain", "dangling"}) {
    EXPECT_TRUE(fs::is_symlink(folder / link)) << link;
  }
  EXPECT_EQ(names_in(folder / "far"), (Names{"new", "old"}));
  fs::create_symlink("round", folder / "round");
  EXPECT_THROW(write_file(folder / "round", "x"), RunError);
}

TEST(Outputs, FolderThatALinkNamesIsReplacedAndTheLinkStays) {
  const TempFolder folder;
  fs::create_directories(folder / "far" / "set");
  fs::create_symlink("far/set", folder / "link");
  fs::create_symlink("far/new", folder / "dangling");
  write_set(folder / "link", "1");
  write_set(folder / "link", "2");
  write_set(folder / "dangling/", "3");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
  EXPECT_EQ(read_file(folder / "far/set/a"), "2");
  EXPECT_EQ(read_file(folder / "far/new/a"), "3");
  EXPECT_EQ(names_in(folder / "far"), (Names{"new", "set"}));
}

TEST(Outputs, DeviceIsWrittenTo) {
  const TempFolder folder;
  fs::create_symlink("/dev/null", folder / "link");
  fs::create_symlink("/dev/full", folder / "full");
  check_writable(folder / "link");
  write_file(folder / "link", "text");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_EQ(run_error_of([&] { write_file(folder / "full", "text"); }),
            "1: cannot write /dev/full: No space left on device");
  const fs::path nul = folder / "nul";
  if (mknod(nul.c_str(), S_IFCHR | 0666, makedev(1, 3)) != 0) GTEST_SKIP() << "mknod needs root";
  check_writable(nul);
  write_file(nul, "text");
  EXPECT_TRUE(fs::is_character_file(nul));
  EXPECT_THROW(write_set(nul, "1"), RunError);
  EXPECT_TRUE(fs::is_character_file(nul));
}

TEST(Outputs, PipeIsWrittenToItsEnd) {
  const TempFolder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  std::string found;
  const std::string text(300000, 'x');
  std::thread reader([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(150));  // the writer waits for it
    found = read_file(pipe);
  });
  check_writable(pipe);
  write_file(pipe, text);
  reader.join();
  EXPECT_TRUE(found == text);
  EXPECT_TRUE(fs::is_fifo(pipe));
}

TEST(Outputs, OwnDescriptorIsWrittenWhereItStands) {
  const TempFolder folder;
  const fs::path file = folder.file("log", "first\n");
  const int fd = open(file.c_str(), O_WRONLY | O_APPEND);
  write_file(fmt::format("/dev/fd/{}", fd), "second\n");
  write_file(fmt::format("/proc/self/fd/{}", fd), "third\n");
  close(fd);
  EXPECT_EQ(read_file(file), "first\nsecond\nthird\n");
}

TEST(Outputs, PipeWithoutAReaderIsLeftWhenAskedToStop) {
  const TempFolder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const auto stop_after = [](int looks) {
    return [looks, n = std::make_shared<int>(0)] { return ++*n > looks; };
  };
  const auto words = [](std::ostream& out) { out << std::string(1 << 20, 'x'); };
  EXPECT_EQ(run_error_of([&] { write_file_with(pipe, words, stop_after(2)); }), "130: interrupted");
  // And one whose reader has stopped reading.
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  EXPECT_EQ(run_error_of([&] { write_file_with(pipe, words, stop_after(20)); }),
            "130: interrupted");
  close(reader);
}

TEST(Outputs, ClosedPipeIsAnErrorAndNoSignal) {
  EXPECT_EQ(in_child([] {
              signal(SIGPIPE, SIG_DFL);
              int ends[2];
              if (pipe(ends) != 0) return 2;
              close(ends[0]);
              const auto words = run_error_of(
                  [&] { write_file(fmt::format("/proc/self/fd/{}", ends[1]), "text"); });
              sigset_t blocked;
              pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
              if (sigismember(&blocked, SIGPIPE) == 1) return 3;  // as it was before
              return words.find("Broken pipe") == std::string::npos ? 4 : 0;
            }),
            0);
}

TEST(Outputs, FullDiskLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  folder.file("list", "before");
  const auto code = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1000, 1000};
    setrlimit(RLIMIT_FSIZE, &limit);
    int64_t asked = 0;
    const auto error = run_error_of([&] {
      write_file_with(folder / "list", [&](std::ostream& out) {
        for (; asked < 100; ++asked) out << std::string(1 << 20, 'x');
      });
    });
    return error.find("File too large; what was there before is unchanged") != std::string::npos &&
                   asked < 2  // the work ends there
               ? 0
               : 1;
  });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(read_file(folder / "list"), "before");
  EXPECT_EQ(names_in(folder.path()), Names{"list"});
}

TEST(Outputs, PermissionsOfTheOldFileStay) {
  const TempFolder folder;
  const fs::path file = folder.file("list", "before");
  fs::permissions(file, fs::perms(0640));
  write_file(file, "after");
  EXPECT_EQ(fs::status(file).permissions(), fs::perms(0640));
}

TEST(Outputs, FileIsNoFolderAndFolderIsNoFile) {
  const TempFolder folder;
  folder.file("file", "text");
  fs::create_directory(folder / "folder");
  EXPECT_THROW(write_set(folder / "file", "1"), RunError);
  EXPECT_THROW(write_file(folder / "folder", "1"), RunError);
  EXPECT_EQ(read_file(folder / "file"), "text");
  EXPECT_EQ(names_in(folder.path()), (Names{"file", "folder"}));
}

// A dataset folder that gets a feature holds its old files as links.
TEST(Outputs, LinkedFilesOfTheOldFolderAreNotWrittenInto) {
  const TempFolder folder;
  write_set(folder / "set", "old");
  EXPECT_THROW(write_folder(folder / "set",
                            [&](const fs::path& to) {
                              fs::create_hard_link(folder / "set/a", to / "a");
                              write_file(to / "a", "new");
                              EXPECT_EQ(read_file(to / "a"), "new");
                              throw data_error("stop");
                            }),
               InputError);
  EXPECT_EQ(read_file(folder / "set/a"), "old");
}

// ------------------------------------------------------------------------------ temporaries

TEST(Temporaries, ThreadsDoNotCollide) {
  const TempFolder folder;
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) {
        try {
          write_file(folder / "file", std::string(5000, static_cast<char>('a' + t)));
          write_set(folder / "set", std::string(5000, static_cast<char>('a' + t)));
        } catch (const std::exception& e) {
          ++failed;
          ADD_FAILURE() << e.what();
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  for (const fs::path& file : {folder / "file", folder / "set/a"}) {
    const std::string found = read_file(file);
    EXPECT_EQ(found, std::string(5000, found.at(0)));
  }
  EXPECT_EQ(names_in(folder.path()), (Names{"file", "set"}));
}

/// The name of the temporary that a process was writing at `place` when it was killed.
std::string killed_writer(const fs::path& place) {
  const auto before = names_in(place.parent_path());
  EXPECT_EQ(in_child([&] {
              write_folder(place, [](const fs::path& to) {
                write_file(to / "half", "x");
                kill(getpid(), SIGKILL);
              });
              return 0;
            }),
            -1);
  for (const auto& name : names_in(place.parent_path())) {
    if (std::count(before.begin(), before.end(), name) == 0) return name;
  }
  return "";
}

TEST(Temporaries, NameHasPlaceHostAndProcess) {
  const TempFolder folder;
  write_folder(folder / "set", [&](const fs::path& to) {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    const std::string name = to.filename().string();
    EXPECT_EQ(name.rfind(".set.", 0), 0) << name;
    EXPECT_NE(name.find(fmt::format(".{}.", getpid())), std::string::npos) << name;
    if (std::string(host.data()).find_first_of("._") == std::string::npos) {
      EXPECT_NE(name.find(std::string(".") + std::string(host.data()).substr(0, 40) + "."),
                std::string::npos)
          << name;
    }
  });
  // As long as a file name can be.
  write_file(folder / std::string(255, 'n'), "x");
}

TEST(Temporaries, LeftoversOfDeadWritersGoAndOthersAreTold) {
  const TempFolder folder;
  const std::string dead = killed_writer(folder / "set");
  ASSERT_NE(dead, "");
  // The same of another host or an earlier start of this one, of an earlier version, of another
  // place, and of a writer that lives.
  const size_t boot = dead.rfind('.', dead.rfind('.', dead.rfind('.', dead.size() - 5) - 1) - 1);
  std::string far = dead;
  far.replace(boot + 1, 16, "0123456789abcdef");
  fs::create_directory(folder / far);
  fs::create_directory(folder / ".set.999999999.tmp");
  std::string other = dead;
  other.replace(0, 5, ".sets.");
  fs::create_directory(folder / other);
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t alive = fork();
  if (alive == 0) {
    write_folder(folder / "set", [&](const fs::path&) {
      if (write(ready[1], "x", 1) == 1) pause();
    });
    _exit(1);
  }
  const AtEnd end{[&] {
    kill(alive, SIGKILL);
    waitpid(alive, nullptr, 0);
    close(ready[0]);
    close(ready[1]);
  }};
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  std::vector<std::string> told;
  warn_of_leftovers(folder / "set",
                    Log([&](Level, const std::string& text) { told.push_back(text); }));
  std::sort(told.begin(), told.end());
  ASSERT_EQ(told.size(), 2);
  EXPECT_EQ(told[0],
            (folder / ".set.999999999.tmp").string() +
                " was begun by process 999999999 and not ended: remove it unless that still runs");
  EXPECT_NE(told[1].find(far + " was begun by process "), std::string::npos) << told[1];
  EXPECT_NE(told[1].find(" on host "), std::string::npos) << told[1];
  write_set(folder / "set", "1");
  const auto found = names_in(folder.path());
  EXPECT_EQ(std::count(found.begin(), found.end(), dead), 0);
  for (const auto& name : {far, other, std::string(".set.999999999.tmp")}) {
    EXPECT_EQ(std::count(found.begin(), found.end(), name), 1) << name;
  }
  EXPECT_EQ(found.size(), 5);  // these three, the set, and what the living one writes
}

// ------------------------------------------------------------------------------ durability

TEST(Durability, EachFileAndItsFolderIsSyncedAndNothingElse) {
  const TempFolder folder;
  std::set<std::pair<dev_t, ino_t>> synced;
  const auto was_synced = [&](const fs::path& path) {
    struct stat about = {};
    EXPECT_EQ(stat(path.c_str(), &about), 0) << path;
    return synced.count({about.st_dev, about.st_ino}) == 1;
  };
  g_syncs_of_system = 0;
  g_synced = &synced;
  write_folder(folder / "set", [](const fs::path& to) {
    fs::create_directory(to / "in");
    write_file(to / "a", "1");
    write_file(to / "in" / "b", "2");
    for (int i = 0; i < 20; ++i) write_file(to / "in" / std::to_string(i), "3");
  });
  for (const char* name : {"set/a", "set/in/b", "set/in", "set", "."}) {
    EXPECT_TRUE(was_synced(folder / name)) << name;
  }
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(was_synced(folder / "set/in" / std::to_string(i)));
  EXPECT_EQ(synced.size(), 25);
  synced.clear();
  write_file(folder / "file", "3");
  g_synced = nullptr;
  EXPECT_TRUE(was_synced(folder / "file"));
  EXPECT_TRUE(was_synced(folder.path()));
  EXPECT_EQ(synced.size(), 2);
  EXPECT_EQ(g_syncs_of_system, 0);
}

TEST(Durability, FailedSyncIsAFailureAndLeavesTheOld) {
  const TempFolder folder;
  folder.file("file", "before");
  write_set(folder / "set", "before");
  g_no_sync = EIO;
  const auto of_file = run_error_of([&] { write_file(folder / "file", "after"); });
  const auto of_folder = run_error_of([&] { write_set(folder / "set", "after"); });
  g_no_sync = EINVAL;  // where folders cannot be synced
  EXPECT_NO_THROW(write_set(folder / "other", "after"));
  g_no_sync = 0;
  EXPECT_NE(of_file.find("Input/output error"), std::string::npos) << of_file;
  EXPECT_NE(of_folder.find("Input/output error"), std::string::npos) << of_folder;
  EXPECT_EQ(read_file(folder / "file"), "before");
  EXPECT_EQ(read_file(folder / "set/a"), "before");
  EXPECT_EQ(names_in(folder.path()), (Names{"file", "other", "set"}));
}

TEST(Durability, ReadErrorIsNotTheEnd) {
  const std::string wanted = "3: cannot read /proc/self/mem: Input/output error";
  EXPECT_EQ(error_of([] { read_file("/proc/self/mem"); }), wanted);
  EXPECT_EQ(error_of([] { sha256_of_file("/proc/self/mem"); }), wanted);
  EXPECT_EQ(error_of([] { sha256_of_file("/proc"); }), "3: /proc is a folder, wanted a file");
  EXPECT_EQ(error_of([] { sha256_of_file("/none"); }),
            "3: no file /none: No such file or directory");
}

// ------------------------------------------------------------------------------ no exchange

class NoExchange : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { g_no_exchange = GetParam(); }
  void TearDown() override {
    g_no_exchange = 0;
    g_before_rename = nullptr;
  }
};

TEST_P(NoExchange, FolderIsReplacedAllTheSame) {
  const TempFolder folder;
  for (const char* text : {"1", "2", "3"}) {
    write_set(folder / "set", text);
    EXPECT_EQ(read_file(folder / "set/a"), text);
    EXPECT_EQ(names_in(folder.path()), Names{"set"});
  }
}

// Killed at each rename, with the old folder in its place or aside.
TEST_P(NoExchange, KillBetweenRenamesLeavesAWholeFolder) {
  for (int renames = 1; renames <= 2; ++renames) {
    const TempFolder folder;
    write_set(folder / "set", "old");
    EXPECT_EQ(in_child([&] {
                int left = renames;
                g_before_rename = [&](const std::string&) {
                  if (--left == 0) kill(getpid(), SIGKILL);
                };
                write_set(folder / "set", "new");
                return 0;
              }),
              -1);
    EXPECT_EQ(fs::exists(folder / "set"), renames == 1);
    EXPECT_TRUE(folder_exists(folder / "set"));
    EXPECT_EQ(read_file(folder / "set/a"), "old");
    write_set(folder / "set", "new");
    EXPECT_EQ(read_file(folder / "set/a"), "new");
    EXPECT_EQ(names_in(folder.path()), Names{"set"});
  }
}

TEST_P(NoExchange, NextWriterThatFailsKeepsWhatWasAside) {
  const TempFolder folder;
  write_set(folder / "set", "old");
  fs::rename(folder / "set", folder / ".set.tessera-previous");
  EXPECT_THROW(write_folder(folder / "set", [](const fs::path&) { throw data_error("stop"); }),
               InputError);
  EXPECT_EQ(read_file(folder / "set/a"), "old");
}

TEST_P(NoExchange, ReaderBetweenRenamesFindsTheOldAndTheWriterGoesOn) {
  const TempFolder folder;
  write_set(folder / "set", "old");
  int reads = 0;
  g_before_rename = [&](const std::string& to) {
    if (to != (folder / "set").string() || reads > 0) return;
    ++reads;
    EXPECT_TRUE(folder_exists(folder / "set"));
    EXPECT_EQ(read_file(folder / "set/a"), "old");
  };
  write_set(folder / "set", "new");
  EXPECT_EQ(reads, 1);
  EXPECT_EQ(read_file(folder / "set/a"), "new");
  EXPECT_EQ(names_in(folder.path()), Names{"set"});
}

INSTANTIATE_TEST_SUITE_P(Errors, NoExchange, testing::Values(EINVAL, ENOSYS, EOPNOTSUPP));

TEST(Folders, NoneIsNoFolder) {
  const TempFolder folder;
  folder.file("file", "x");
  EXPECT_FALSE(folder_exists(folder / "none"));
  EXPECT_FALSE(folder_exists(folder / "file"));
  EXPECT_TRUE(folder_exists(folder.path()));
}

}  // namespace
}  // namespace tessera
