#include "tessera/study/doctor.h"

#include "cli/cli.h"

namespace tessera::cli {
namespace {

void doctor(const Common& common) {
  const std::vector<Finding> findings = examine_machine();
  std::vector<std::string> unfit;
  std::string text;
  for (const auto& one : findings) {
    if (!one.fit) unfit.push_back(one.what);
    text += fmt::format("{:<8} {:<16} {}{}\n", one.fit ? "fit" : "not fit", one.what, one.found,
                        one.remedy.empty() ? "" : "; " + one.remedy);
  }
  if (common.json) {
    print_json(findings_json(findings));
  } else {
    print(text + (unfit.empty() ? "this machine is fit\n" : "this machine is not fit\n"));
  }
  if (!unfit.empty()) {
    throw RunError(Exit::failed, fmt::format("not fit: {}; the remedy stands beside each",
                                             fmt::join(unfit, ", ")));
  }
}

}  // namespace

void add_doctor(CLI::App& app, Common& common) {
  add_verb(app, common, "doctor", "is this machine fit, and what to do if not", false,
           [&common] { doctor(common); });
}

}  // namespace tessera::cli
