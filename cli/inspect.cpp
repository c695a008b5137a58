#include <memory>

#include "cli/cli.h"
#include "cli/read_flags.h"
#include "tessera/read/known_sets.h"
#include "tessera/read/readers.h"

namespace tessera::cli {

void add_inspect(CLI::App& app, Common& common) {
  struct Flags {
    std::string path;
    ReadOptions read;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(
      app, common, "inspect", "what a file, folder, run or bundle is", false, [&common, flags] {
        if (flags->read.rows < 0) {
          throw usage_error("--rows must be at least 0, got {}", flags->read.rows);
        }
        flags->read.stop_requested = interrupted;
        Json report = inspect(flags->path, flags->read);
        // Counted here rather than in inspect(): import counts what it keeps.
        const std::string use = report.value("use", "");
        if (use == "interactions" || use == "folder") {
          std::string known;
          try {
            known = known_set_of(flags->path, flags->read);
          } catch (const InputError& e) {
            known = fmt::format("rows not counted: {}", e.what());
          }
          if (!known.empty()) report["notes"].push_back(known);
        }
        if (common.json) {
          print_json(report);
        } else {
          print(inspect_text(report));
        }
      });
  verb->add_option("path", flags->path, "file or folder")->required();
  verb->add_option("--rows", flags->read.rows, "parsed rows shown, default 3");
  add_read_flags(*verb, flags->read);
}

}  // namespace tessera::cli
