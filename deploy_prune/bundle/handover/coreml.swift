// $artifact on iOS 16 or macOS 13: drag it into the Xcode project, which compiles it.
import CoreML

/// All outputs for one picture, in order. Compare with sample/expected_0.npy and its like; Decode.swift reads them.
/// model: `try MLModel(contentsOf: Bundle.main.url(forResource: "model", withExtension: "mlmodelc")!)`.
func outputs(_ picture: Picture, model: MLModel) throws -> [[Float]] {
  let x = MLMultiArray(MLShapedArray<Float>(scalars: preprocess(picture), shape: [1, channels, height, width]))
  let found = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["input": x]))
  return (0..<found.featureNames.count).map { i in
    MLShapedArray<Float>(converting: found.featureValue(for: "out\(i)")!.multiArrayValue!).scalars
  }
}
