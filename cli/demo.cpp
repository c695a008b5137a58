#include "tessera/study/demo.h"

#include "cli/cli.h"
#include "tessera/base/files.h"

namespace tessera::cli {
namespace {

std::string next_steps(const DemoResult& result) {
  return fmt::format(
      "\nTo go on:\n"
      "  {0} inspect {1}/source/events.tsv\n"
      "  {0} recommend {1}/runs/{2}/model --users u0003 -n 10\n"
      "  {0} similar {1}/runs/VBPR/model p0001 --by image\n"
      "  {0} train -m VBPR -d {1}/dataset --modalities text\n"
      "  {0} inspect YOUR_FILE; {0} import YOUR_FILE -o YOUR_DATASET",
      fs::exists("build/tessera") ? "build/tessera" : "tessera", result.folder.string(),
      result.best);
}

}  // namespace

void add_demo(CLI::App& app, Common& common) {
  add_verb(app, common, "demo",
           "make a small shop, train six models on it, compare them, recommend", false, [&common] {
             DemoRequest request;
             request.folder = common.output.empty() ? "demo-shop" : common.output;
             int64_t seed = 999;
             Fields fields("demo");
             fields.add("seed", seed, "of everything that is made up or drawn", at_least(0));
             fields.add("threads", request.threads, "0: all cores", at_least(0));
             fields.apply(common.flags);
             refuse_unknown(common.flags, {&fields}, "demo");
             request.seed = static_cast<uint64_t>(seed);
             request.command = common.command;
             request.log = make_log(common);
             request.stop_requested = interrupted;
             const DemoResult result = demo(request);
             if (common.json) {
               print_json(result.json());
             } else {
               print(demo_text(result) + next_steps(result));
             }
           });
}

}  // namespace tessera::cli
