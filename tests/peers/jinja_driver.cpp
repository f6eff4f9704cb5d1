// Renders chat templates by llama.cpp's own Jinja engine (common/jinja), without a model or a server.
//
// A line of input is {"source": text, "contexts": [object, ...]}; a line of output {"parse": error} or
// {"results": [{"text": ...} or {"error": ...}, ...]}.
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"
#include "json.h"

#include <cstdlib>
#include <iostream>
#include <string>

// json.cpp asks ggml for it; nothing else of ggml is needed.
extern "C" void ggml_abort(const char *, int, const char *, ...) {
    std::abort();
}

int main() {
    std::string line;
    while (std::getline(std::cin, line)) {
        common_json out = common_json::object();
        common_json in = common_json::parse(line);
        std::string source = in["source"].get<std::string>();
        try {
            jinja::lexer lexer;
            auto tokens = lexer.tokenize(source);
            jinja::program program = jinja::parse_from_tokens(tokens);
            common_json results = common_json::array();
            for (const auto & given : in["contexts"]) {
                common_json result = common_json::object();
                try {
                    jinja::context context(tokens.source);
                    jinja::global_from_json(context, given, false);
                    jinja::runtime runtime(context);
                    const jinja::value value = runtime.execute(program);
                    result["text"] = jinja::runtime::gather_string_parts(value)->as_string().str();
                } catch (const std::exception & e) {
                    result["error"] = std::string(e.what());
                }
                results.push_back(result);
            }
            out["results"] = results;
        } catch (const std::exception & e) {
            out["parse"] = std::string(e.what());
        }
        std::cout << out.dump_safe() << std::endl;
    }
}
