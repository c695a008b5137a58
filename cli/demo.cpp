#include "tessera/study/demo.h"

#include "cli/cli.h"
#include "tessera/base/files.h"

namespace tessera::cli {

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
             const Json result = demo(request);
             if (common.json) {
               print_json(result);
             } else {
               print(demo_text(result, fs::exists("build/tessera") ? "build/tessera" : "tessera"));
             }
           });
}

}  // namespace tessera::cli
