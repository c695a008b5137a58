#include "cli/cli.h"

namespace tessera::cli {

void add_recommend(CLI::App&, Common&) {}

}  // namespace tessera::cli
