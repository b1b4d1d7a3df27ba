// $artifact in MNN:
// g++ -std=c++17 main.cpp -lMNN -lMNN_Express && ./a.out ../$artifact ../sample/images.npy
#include <MNN/expr/Executor.hpp>
#include <MNN/expr/ExprCreator.hpp>
#include <MNN/expr/Module.hpp>
#include <memory>

#include "decode.hpp"

int main(int, char** arguments) {
  using namespace MNN::Express;
  MNN::BackendConfig precise;  // left to itself MNN may compute in half precision, where the processor has it
  precise.precision = MNN::BackendConfig::Precision_High;
  MNN::ScheduleConfig schedule;
  schedule.numThread = 1;
  schedule.backendConfig = &precise;
  const std::shared_ptr<Executor::RuntimeManager> runtime(
      Executor::RuntimeManager::createRuntimeManager(schedule), Executor::RuntimeManager::destroy);
  const std::shared_ptr<Module> net(Module::load({}, {}, arguments[1], runtime), Module::destroy);
  if (!net) return 1;

  for (const Picture& picture : pictures(arguments[2])) {
    const auto x = preprocess(picture);
    Outputs outputs;
    for (VARP found : net->onForward({_Const(x.data(), {1, kChannels, kHeight, kWidth}, NCHW)})) {
      found = _Convert(found, NCHW);  // MNN keeps some with four channels beside each other
      const float* values = found->readMap<float>();
      outputs.emplace_back(values, values + found->getInfo()->size);
    }
    print(outputs, picture);
  }
}
