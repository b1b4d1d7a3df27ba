// What the outputs of $artifact say: boxes. The program is the same for all kinds of detectors; the numbers are this
// one's.
import Foundation

/// Edges in pixels; label: a place in labels.json, from 0 on.
struct Box { var left: Float, top: Float, right: Float, bottom: Float, score: Float, label: Int }

/// Numbers in an output: that of a row and column stands at start + row * perRow + column * perColumn.
struct Field {
  let output: Int, start: Int, perRow: Int, perColumn: Int

  init(_ output: Int, _ start: Int, _ perRow: Int, _ perColumn: Int) {
    (self.output, self.start, self.perRow, self.perColumn) = (output, start, perRow, perColumn)
  }
}

/// Rows whose numbers stand together. Anchors on a grid: anchors[first] and the following, perPlace at a place, moved
/// by the steps; or, where anchors has an output, among the outputs. more: a number that the scores depend on, too.
struct Level {
  let rows: Int, width: Int, perPlace: Int, first: Int, stepY: Double, stepX: Double
  let scores: Field, codes: Field, more: Field, anchors: Field

  init(
    _ rows: Int, _ width: Int, _ perPlace: Int, _ first: Int, _ stepY: Double, _ stepX: Double,
    _ scores: Field, _ codes: Field, _ more: Field, _ anchors: Field
  ) {
    (self.rows, self.width, self.perPlace, self.first) = (rows, width, perPlace, first)
    (self.stepY, self.stepX) = (stepY, stepX)
    (self.scores, self.codes, self.more, self.anchors) = (scores, codes, more, anchors)
  }
}

enum More { case none, factor, root }  // scores as they are, times more, or the root of that
enum Group { case all, level, column }  // what has mostCandidates of its own
enum Codes { case deltas, distances, shares, edges }  // what a box's numbers are
enum Clip { case before, after, never }  // when a box is cut at the input's edges

let levels: [Level] = [
$levels
]
let anchors: [[Double]] = [
$anchors
]
let numLogits = $logits, firstLogit = $first, columns = $columns, mostCandidates = $candidates
let numBins = $bins, codesPerLogit = $codes_per_logit, mostBoxes = $most_boxes, labelShift = $shift
let isSoftmax = $softmax, oneEach = $one_each
let scoresMore = More.$more
let group = Group.$group
let codes = Codes.$codes
let clipped = Clip.$clip
let leastScore: Float = $least_score, mostOverlap: Float = $overlap, leastSide: Float = $least_side, most: Float = $most
let weights: [Float] = [$weights]

func number(_ outputs: [[Float]], _ field: Field, _ row: Int, _ column: Int) -> Float {
  return outputs[field.output][field.start + row * field.perRow + column * field.perColumn]
}

func sigmoid(_ logit: Float) -> Float { return 1 / (1 + exp(-logit)) }

/// Shares of a whole, from logits.
func softmax(_ logits: [Float]) -> [Float] {
  let highest = logits.max()!
  let raised = logits.map { logit in exp(logit - highest) }
  let sum = raised.reduce(0, +)
  return raised.map { share in share / sum }
}

/// Scores [columns] of a row.
func scoresOf(_ outputs: [[Float]], _ level: Level, _ row: Int) -> [Float] {
  var every = (0..<numLogits).map { i in number(outputs, level.scores, row, i) }
  if isSoftmax { every = softmax(every) }
  var scores = Array(every[firstLogit..<firstLogit + columns])
  for i in scores.indices {
    if !isSoftmax { scores[i] = sigmoid(scores[i]) }
    if scoresMore != .none { scores[i] *= sigmoid(number(outputs, level.more, row, 0)) }
    if scoresMore == .root { scores[i] = scores[i].squareRoot() }
  }
  return scores
}

/// The anchor of a row: left, top, right, bottom.
func anchorOf(_ outputs: [[Float]], _ level: Level, _ row: Int) -> [Float] {
  let place = row / level.perPlace, y = place / level.width, x = place % level.width
  return (0..<4).map { i in
    if level.anchors.output >= 0 {
      return number(outputs, level.anchors, row, i)
    } else {
      let moved = i % 2 == 0 ? Double(x) * level.stepX : Double(y) * level.stepY
      return Float(anchors[level.first + row % level.perPlace][i] + moved)
    }
  }
}

/// A row's numbers for a box; of a distribution over bins the mean. Classes may have their own.
func codesOf(_ outputs: [[Float]], _ level: Level, _ row: Int, _ column: Int) -> [Float] {
  var found = [Float](repeating: 0, count: 4)
  for i in 0..<4 {
    let before = (firstLogit + column) * codesPerLogit + i * numBins
    let bins = (0..<numBins).map { bin in number(outputs, level.codes, row, before + bin) }
    found[i] = bins[0]
    if numBins == 1 { continue }
    let shares = softmax(bins)
    found[i] = 0
    for bin in 0..<numBins { found[i] += shares[bin] * Float(bin) }
  }
  return found
}

/// One side of a box, along x (axis 0) or y (axis 1), of size pixels: from, to.
func sideOf(_ code: [Float], _ anchor: [Float], _ axis: Int, _ size: Float) -> [Float] {
  if codes == .edges { return [code[axis], code[axis + 2]] }
  if codes == .shares {
    return [(code[axis] - code[axis + 2] / 2) * size, (code[axis] + code[axis + 2] / 2) * size]
  }
  let side = anchor[axis + 2] - anchor[axis], centre = anchor[axis] + side / 2
  if codes == .distances { return [centre - code[axis] * side, centre + code[axis + 2] * side] }
  let moved = centre + code[axis] / weights[axis] * side
  let half = exp(min(code[axis + 2] / weights[axis + 2], most)) * side / 2
  return [moved - half, moved + half]
}

func clip(_ box: Box, _ ofHeight: Float, _ ofWidth: Float) -> Box {
  return Box(
    left: max(0, min(box.left, ofWidth)), top: max(0, min(box.top, ofHeight)),
    right: max(0, min(box.right, ofWidth)), bottom: max(0, min(box.bottom, ofHeight)),
    score: box.score, label: box.label)
}

func boxOf(_ outputs: [[Float]], _ level: Level, _ row: Int, _ column: Int, _ score: Float) -> Box {
  let code = codesOf(outputs, level, row, column)
  var anchor = code
  if codes == .deltas || codes == .distances { anchor = anchorOf(outputs, level, row) }
  let across = sideOf(code, anchor, 0, Float(width)), down = sideOf(code, anchor, 1, Float(height))
  let box = Box(
    left: across[0], top: down[0], right: across[1], bottom: down[1], score: score, label: firstLogit + column)
  return clipped == .before ? clip(box, Float(height), Float(width)) : box
}

/// A score, and what has it.
struct Candidate { let score: Float, level: Int, row: Int, column: Int }

/// The places of scores, falling; equals in their order, which Swift's sort doesn't promise.
func falling(_ scores: [Float]) -> [Int] {
  return scores.indices.sorted { a, b in scores[a] > scores[b] || (scores[a] == scores[b] && a < b) }
}

/// The best of one group, their scores falling.
func bestOf(_ group: [Candidate]) -> [Candidate] {
  return falling(group.map { each in each.score }).prefix(mostCandidates).map { place in group[place] }
}

/// What scores above leastScore, the best of each group.
func candidates(_ outputs: [[Float]]) -> [Candidate] {
  var groups = [[Candidate]](repeating: [], count: group == .column ? columns : 1)
  var found: [Candidate] = []
  for l in levels.indices {
    for row in 0..<levels[l].rows {
      let scores = scoresOf(outputs, levels[l], row)
      let best = scores.firstIndex(of: scores.max()!)!
      for column in 0..<columns where scores[column] > leastScore && (!oneEach || column == best) {
        let each = Candidate(score: scores[column], level: l, row: row, column: column)
        groups[group == .column ? column : 0].append(each)
      }
    }
    if group == .level {
      found += bestOf(groups[0])
      groups[0] = []
    }
  }
  for each in groups { found += bestOf(each) }
  return found
}

/// Intersection over union; 0 where neither has an area.
func overlap(_ a: Box, _ b: Box) -> Float {
  let across = min(a.right, b.right) - max(a.left, b.left)
  let down = min(a.bottom, b.bottom) - max(a.top, b.top)
  let both = max(across, 0) * max(down, 0)
  let all = (a.right - a.left) * (a.bottom - a.top) + (b.right - b.left) * (b.bottom - b.top) - both
  return all > 0 ? both / all : 0
}

/// Non-maximum suppression, each class on its own: the boxes that stay, their scores falling.
func suppressed(_ boxes: [Box]) -> [Box] {
  let places = boxes.indices.sorted { a, b in
    boxes[a].label < boxes[b].label || (boxes[a].label == boxes[b].label && a < b)
  }
  let byLabel = places.map { place in boxes[place] }
  var stay: [Box] = []
  for place in falling(byLabel.map { each in each.score }) {
    let box = byLabel[place]
    if stay.count == mostBoxes { break }
    let hidden = stay.contains { other in other.label == box.label && overlap(other, box) > mostOverlap }
    if !hidden { stay.append(box) }
  }
  return stay
}

/// Boxes in pixels of the network's input.
func boxesInInput(_ outputs: [[Float]]) -> [Box] {
  var every: [Box] = []
  var found: [Box] = []
  for each in candidates(outputs) {
    let box = boxOf(outputs, levels[each.level], each.row, each.column, each.score)
    let side = min(box.right - box.left, box.bottom - box.top)
    if leastSide == 0 || side >= leastSide { every.append(box) }
  }
  for each in suppressed(every) {
    var box = each
    box.label -= labelShift
    if clipped == .after { box = clip(box, Float(height), Float(width)) }
    if box.label >= 0 { found.append(box) }
  }
  return found
}

/// Boxes in pixels of a picture of this size, their scores falling.
func boxes(_ outputs: [[Float]], _ ofHeight: Int, _ ofWidth: Int) -> [Box] {
  let m = mapping(ofHeight, ofWidth)
  return boxesInInput(outputs).map { each in
    var box = each
    box.left = Float((Double(box.left) - m.shiftX) / m.scaleX)
    box.right = Float((Double(box.right) - m.shiftX) / m.scaleX)
    box.top = Float((Double(box.top) - m.shiftY) / m.scaleY)
    box.bottom = Float((Double(box.bottom) - m.shiftY) / m.scaleY)
    return clip(box, Float(ofHeight), Float(ofWidth))
  }
}
