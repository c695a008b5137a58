#include "tessera/study/report.h"

#include "cli/cli.h"
#include "tessera/base/files.h"

namespace tessera::cli {

void add_report(CLI::App& app, Common& common) {
  auto paths = std::make_shared<std::vector<std::string>>();
  CLI::App* verb =
      add_verb(app, common, "report",
               "one self-contained HTML page of a run, a folder of runs, or of reviewed features",
               false, [&common, paths] {
                 const std::vector<fs::path> folders(paths->begin(), paths->end());
                 const fs::path place = common.output.empty() ? "report.html" : common.output;
                 check_writable(place);
                 const Json data = report_data(folders, make_log(common));
                 write_file(place, report_page(data));
                 if (common.json) {
                   print_json({{"file", place.string()}});
                 } else {
                   print_place(place.string());
                 }
               });
  verb->add_option(
      "runs", *paths,
      "run folders, the folder of a comparison, or a dataset folder that was reviewed");
}

}  // namespace tessera::cli
