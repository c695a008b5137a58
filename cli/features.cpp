#include "tessera/study/features.h"

#include "cli/cli.h"

namespace tessera::cli {
namespace {

std::string text_of(const FeaturesResult& made) {
  std::string out;
  for (const auto& one : made.features()) {
    out += fmt::format("{:<20} {} x {}", one.modality, one.rows, one.width);
    if (one.missing) out += fmt::format(", {} items without", *one.missing);
    if (one.failed.value_or(0) != 0) out += fmt::format(", {} failed", *one.failed);
    if (one.bound) out += ", good for this split only";
    out += "\n";
  }
  for (const auto& name : made.files) out += fmt::format("{:<20} written\n", name);
  return out + "folder " + made.folder.string();
}

}  // namespace

void add_features(CLI::App& app, Common& common) {
  struct Flags {
    std::string folder, encoder, dtype = "float32";
    std::optional<int64_t> batch;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb =
      add_verb(app, common, "features",
               "make feature files for a dataset folder; any setting of the encoder is also a flag",
               true, [&common, flags] {
                 FeaturesRequest request;
                 if (!flags->folder.empty() && !common.datasets.empty()) {
                   throw usage_error("the dataset is given twice: {} and -d {}", flags->folder,
                                     common.datasets[0]);
                 }
                 request.dataset = flags->folder.empty() ? common.dataset() : flags->folder;
                 request.encoder = flags->encoder;
                 request.dtype = flags->dtype;
                 request.settings = gather_settings(common);
                 if (flags->batch) request.settings.push_back({"batch", *flags->batch, "flag"});
                 request.output = common.output;
                 request.log = make_log(common);
                 request.stop_requested = interrupted;
                 const FeaturesResult made = make_features(request);
                 if (common.json) {
                   print_json(made.json());
                 } else {
                   print(text_of(made));
                 }
               });
  verb->add_option("folder", flags->folder, "dataset folder");
  verb->add_option("--encoder", flags->encoder,
                   "a model that makes features (pamd, ..) or a run of one; tfidf; 'exec:COMMAND'");
  verb->add_option("--dtype", flags->dtype, "of the files: float32 (default) or float16");
  verb->add_option("--batch", flags->batch,
                   "exec: items that one run of the command gets (default: all)");
}

}  // namespace tessera::cli
