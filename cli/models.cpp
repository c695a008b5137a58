#include "cli/cli.h"

namespace tessera::cli {

void add_models(CLI::App&, Common&) {}

}  // namespace tessera::cli
