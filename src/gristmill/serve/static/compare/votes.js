// Votes on their way to the server, and the score that it keeps.

import { json } from "../lib/api.js";

export function sendVote({ prompt, sides, blind }, choice, reason, annotator) {
  const answers = sides.map(({ contestant, node }) => ({ model: contestant.label.slice(0, 200), text: node.content }));
  return json("/app/votes", {
    method: "POST",
    body: { prompt, answers, choice, blind, ...(reason && { reason }), ...(annotator && { annotator }) },
  });
}

export async function score() {
  return (await json("/app/votes/summary")).pairs;
}
