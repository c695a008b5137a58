#include "cli/cli.h"

namespace tessera::cli {

void add_train(CLI::App&, Common&) {}

}  // namespace tessera::cli
